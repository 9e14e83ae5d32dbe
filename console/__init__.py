"""What an operator touches: the `reservoir` command, `reservoir up`, the embedded services."""
