"""What a study makes of its cells: one table, one picture."""
