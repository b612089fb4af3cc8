"""Moving bytes up and down."""
