"""Many runs from one command: which they are, how far they are, several at a time, a search, the table at the end."""
