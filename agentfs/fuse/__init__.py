"""The kernel's side: FUSE requests in, workspace calls out."""
