# Who may do what in a small library, with each form of decision that the
# OPA-Envoy plugin knows.
package envoy.authz

import input.attributes.request.http as request

# Nobody is allowed by default.
default allow := false

# A connection (the network filter asks without a request): only from here.
allow if {
	not request
	input.attributes.source.address.socketAddress.address == "127.0.0.1"
}

# A gRPC call, whose message the descriptor set makes readable.
allow if {
	input.parsed_path == ["grpc.health.v1.Health", "Check"]
	input.parsed_body.service == "library"
}

# Everybody reads; librarians get told who they are.
allow := {
	"allowed": true,
	"headers": {"x-reader": claims.sub, "x-shelves": claims.shelves},
	"request_headers_to_remove": ["authorization"],
	"response_headers_to_add": {"x-decided-by": "library"},
	"query_parameters_to_set": {"limit": "10"},
	"query_parameters_to_remove": ["debug"],
	"dynamic_metadata": {"reader": claims.sub},
} if {
	input.parsed_path[0] == "books"
	permitted
}

# Who has no token is asked for one.
allow := {
	"allowed": false,
	"http_status": 401,
	"headers": {"www-authenticate": "Bearer realm=\"library\""},
	"body": "show your card",
} if {
	input.parsed_path[0] == "books"
	not claims
}

permitted if request.method == "GET"

permitted if {
	request.method == "POST"
	claims.role == "librarian"
	not input.truncated_body
	input.parsed_body.title != ""
}

claims := payload if {
	[_, encoded] := split(request.headers.authorization, " ")
	[valid, _, payload] := io.jwt.decode_verify(encoded, {"secret": "not a secret: this is an example", "alg": "HS256"})
	valid
}
