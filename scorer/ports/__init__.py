"""What every gRPC port of a scorer has: how it is made, who may come in, and how long a call may take."""
