"""The journal: one total order of entries, behind one small contract, on several engines."""
