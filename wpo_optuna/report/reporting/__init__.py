"""What a report says of a study, and the measurements it needs."""
