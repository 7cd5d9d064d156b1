"""Studies: many units of work from one YAML file, kept in a ledger, run by an engine."""
