"""The fast readings of the ops: one module per kind of array, the same names in each."""
