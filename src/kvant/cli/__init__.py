"""The command line: one file a command, thin. Data on stdout, everything else on stderr."""
