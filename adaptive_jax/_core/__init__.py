"""What a rule is, how its slots are kept, and how it is lifted to a whole tree."""
