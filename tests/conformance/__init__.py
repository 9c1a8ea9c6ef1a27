"""One suite per contract, which every engine passes."""
