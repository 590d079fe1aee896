"""The command line. One module per verb; heavy imports happen inside the verbs."""
