"""What the client costs, beside other clients and beside the least that any client must do."""
