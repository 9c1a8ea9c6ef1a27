"""The whole system in one thread, in virtual time, with seeded faults and invariants; scripts/simulate replays a seed."""
