"""How fast this device does the work, beside what it can do and beside other programs."""
