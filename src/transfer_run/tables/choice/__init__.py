"""Which of many runs fits a card: their plans in one table, best first."""
