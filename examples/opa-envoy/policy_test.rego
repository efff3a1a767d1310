package envoy.authz_test

import data.envoy.authz

token(role) := io.jwt.encode_sign(
	{"alg": "HS256", "typ": "JWT"},
	{"sub": "ann", "role": role, "shelves": ["a", "b"]},
	{"kty": "oct", "k": base64url.encode_no_pad("not a secret: this is an example")},
)

asks(method, role, body) := {
	"attributes": {"request": {"http": {"method": method, "headers": {"authorization": concat(" ", ["Bearer", token(role)])}}}},
	"parsed_path": ["books"],
	"parsed_body": body,
	"truncated_body": false,
}

test_readers_read if {
	authz.allow.allowed with input as asks("GET", "reader", null)
}

test_readers_write_nothing if {
	not authz.allow with input as asks("POST", "reader", {"title": "x"})
}

test_librarians_write if {
	authz.allow.headers["x-reader"] == "ann" with input as asks("POST", "librarian", {"title": "x"})
}

test_a_book_has_a_title if {
	not authz.allow with input as asks("POST", "librarian", {"title": ""})
}

test_half_a_book_is_none if {
	not authz.allow with input as object.union(asks("POST", "librarian", {"title": "x"}), {"truncated_body": true})
}

test_strangers_are_asked_who_they_are if {
	authz.allow.http_status == 401 with input as {"attributes": {"request": {"http": {"method": "GET", "headers": {}}}}, "parsed_path": ["books"]}
}

test_connections_from_here if {
	authz.allow == true with input as {"attributes": {"source": {"address": {"socketAddress": {"address": "127.0.0.1"}}}}}
	not authz.allow with input as {"attributes": {"source": {"address": {"socketAddress": {"address": "192.0.2.1"}}}}}
}
