"""Results that outlive the process that measured them: one documented form for all commands of `bench`."""
