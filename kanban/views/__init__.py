"""Pages of this app: the board, the list, a task, a run, the profiles, and the verbs."""
