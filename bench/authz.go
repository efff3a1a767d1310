package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// rule looks at path, method, header and principal.
const rule = `package envoy.authz

default allow := false

allow if {
	input.attributes.request.http.method == "GET"
	startswith(input.attributes.request.http.path, "/api/")
	input.attributes.request.http.headers["x-team"] == "payments"
	startswith(input.attributes.source.principal, "spiffe://cluster.local/ns/payments/")
}
`

// authz measures Check with 64 in flight over 4 connections: inputs seen before
// (100 of them), and inputs that are new each time.
func authz(ctx context.Context, o options) ([]row, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	conf, policy := filepath.Join(o.dir, "config.yaml"), filepath.Join(o.dir, "policy.rego")
	text := fmt.Sprintf("plugins:\n  envoy_ext_authz_grpc:\n    addr: %s\n    path: envoy/authz/allow\n", addr)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(policy, []byte(rule), 0o600); err != nil {
		return nil, err
	}
	server, err := launch(ctx, addr, filepath.Join(o.bin, "writ-authz"), "-opa-config", conf, policy)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	floor, floorAddr, err := floorProcess(ctx)
	if err != nil {
		return nil, err
	}
	defer floor.stop()
	at := func(address string, want codes.Code, path func(worker, n int) string) load {
		return load{address: address, connections: 4, inFlight: 64, call: func(ctx context.Context, c *grpc.ClientConn, worker, n int) error {
			resp, err := authv3.NewAuthorizationClient(c).Check(ctx, checkRequest(path(worker, n)))
			if err == nil && codes.Code(resp.GetStatus().GetCode()) != want { //nolint:gosec // codes are small
				return fmt.Errorf("answered %v, want %v", resp.GetStatus(), want)
			}
			return err
		}}
	}
	seen := func(_, n int) string { return fmt.Sprintf("/api/orders/%d", n%100) }
	fresh := func(worker, n int) string { return fmt.Sprintf("/api/orders/%d/%d", worker, n) }
	got, err := compare(ctx, o,
		side{load: at(addr, codes.OK, seen), server: server},
		side{load: at(addr, codes.OK, fresh), server: server},
		side{load: at(floorAddr, codes.OK, seen), server: floor})
	if err != nil {
		return nil, err
	}
	return []row{
		{name: "authz Check, input seen before", ours: got[0].perOp, floor: got[2].perOp, rate: got[0].rate, note: "goal 1.4"},
		{name: "authz Check, new input", ours: got[1].perOp, floor: got[2].perOp, rate: got[1].rate, note: "goal 2.5"},
	}, nil
}

func checkRequest(path string) *authv3.CheckRequest {
	peer := func(id string, port uint32) *authv3.AttributeContext_Peer {
		return &authv3.AttributeContext_Peer{Principal: id, Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "127.0.16.3", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}},
		}}}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source:      peer("spiffe://cluster.local/ns/payments/sa/checkout", 41234),
		Destination: peer("spiffe://cluster.local/ns/payments/sa/orders", 9080),
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "7046313911829012", Method: "GET", Path: path, Host: "orders.payments.svc.cluster.local", Scheme: "http", Protocol: "HTTP/2",
			Headers: map[string]string{
				":authority": "orders.payments.svc.cluster.local", ":method": "GET", ":path": path, ":scheme": "http",
				"accept": "*/*", "user-agent": "bench", "x-team": "payments", "x-request-id": "3e9c1d7a-6f0f-4d1a-9b39-0c6b7f7a2f11",
				"x-forwarded-proto": "http",
			},
		}},
	}}
}
