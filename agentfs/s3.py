"""S3 as agentfs uses it, for replicas and for journals: where a bucket is, a client for it, and its errors as ours."""
