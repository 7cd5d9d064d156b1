"""The records that a report is made of, by what they are about."""
