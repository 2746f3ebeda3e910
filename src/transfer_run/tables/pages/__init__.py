"""The page of a choice: what a method, a data set or a backbone is, its options, commands, tables and figures."""
