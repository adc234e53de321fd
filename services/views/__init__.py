"""Pages of this app: the list, one process, how one is declared, and the verbs."""
