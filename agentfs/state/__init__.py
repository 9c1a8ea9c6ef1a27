"""State: what replaying the journal to a position gives."""
