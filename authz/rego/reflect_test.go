package rego

import (
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// The attributes that are written out by hand are those that a walk over the
// message gives.
func TestAttributesAsReflected(t *testing.T) {
	for _, text := range []string{
		`{}`,
		`{"source": {}, "destination": {"address": {}}}`,
		`{"source": {"address": {"socketAddress": {"protocol": "UDP", "address": "::1", "portValue": 0, "resolverName": "r", "ipv4Compat": true}},
		  "service": "s", "labels": {"a": "b"}, "principal": "p", "certificate": "c"}}`,
		`{"source": {"address": {"socketAddress": {"address": "a", "namedPort": "http"}}}}`,
		`{"source": {"address": {"socketAddress": {"address": "a", "networkNamespaceFilepath": "/x"}}}}`,
		`{"source": {"address": {"pipe": {"path": "/a", "mode": 420}}}}`,
		`{"source": {"address": {"envoyInternalAddress": {"serverListenerName": "x", "endpointId": "y"}}}}`,
		`{"request": {}}`,
		`{"request": {"time": "2026-01-01T00:00:00.5Z", "http": {"id": "i", "method": "m", "headers": {"a": "b"}, "path": "p", "host": "h", "scheme": "s",
		  "query": "q", "fragment": "f", "size": "-1", "protocol": "HTTP/1.0", "body": "b", "rawBody": "AAEC",
		  "headerMap": {"headers": [{"key": "a", "rawValue": "AA=="}, {"key": "a", "value": "c"}]}}}}`,
		`{"contextExtensions": {"writ.policies": "a/b"}, "tlsSession": {"sni": "x"}}`,
		`{"tlsSession": {}, "metadataContext": {"filterMetadata": {"f": {"a": [1, null, "x", {"b": true}]}},
		  "typedFilterMetadata": {"t": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "v"}}},
		  "routeMetadataContext": {}}`,
	} {
		a := new(authv3.AttributeContext)
		if err := protojson.Unmarshal([]byte(text), a); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got, want := attributes(a, everything), message(a.ProtoReflect()); got.Value.Compare(want.Value) != 0 {
			t.Errorf("%s:\n got %v\nwant %v", text, got, want)
		}
	}
}

// FuzzNewInput feeds any message: no panic, and what is accepted has the same
// attributes as the walk over the message gives.
func FuzzNewInput(f *testing.F) {
	for _, req := range []*authv3.CheckRequest{
		{},
		request(), request(body("application/json", `{"a": 1}`)),
		request(body("multipart/form-data; boundary=x", "--x\r\n\r\n")), request(body("application/grpc", "12345")),
	} {
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(authv3.CheckRequest)
		if proto.Unmarshal(b, req) != nil {
			return
		}
		in, err := NewInput(req, InputOptions{})
		if err != nil {
			return
		}
		if _, err := in.json(); err != nil {
			t.Fatal(err)
		}
		if a := req.GetAttributes(); a != nil && attributes(a, everything).Value.Compare(message(a.ProtoReflect()).Value) != 0 {
			t.Fatalf("attributes differ for %v", a)
		}
	})
}
