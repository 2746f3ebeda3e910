"""Methods that give a network its first weights."""
