package meshdir

import (
	"strings"
	"testing"
)

// TestNothingIsPassedOverInSilence: what is read and not enforced is refused or
// warned of.
func TestNothingIsPassedOverInSilence(t *testing.T) {
	for _, tc := range []struct {
		name, document, field string
		severity              Severity
	}{
		{"Telemetry", "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: x}\nspec: {accessLogging: [{disabled: true}]}\n", "spec", Warning},
		{"tunnel by POST", "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: a.example, trafficPolicy: {tunnel: {protocol: POST, targetHost: b.example, targetPort: 80}}}\n", "spec.trafficPolicy.tunnel.protocol", Error},
		{"AUTO_PASSTHROUGH", "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: x}\nspec: {selector: {a: b}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, hosts: ['*'], tls: {mode: AUTO_PASSTHROUGH}}]}\n", "spec.servers[0].tls.mode", Warning},
		{"egressProxy", "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: x}\nspec: {outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: a.example, port: {number: 80}}}}\n", "spec.outboundTrafficPolicy.egressProxy", Error},
		{"bind of a Sidecar", "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: x}\nspec: {egress: [{bind: 127.0.0.1, port: {number: 3306, name: db, protocol: MYSQL}, hosts: ['*/*']}]}\n", "spec.egress[0].bind", Warning},
		{"bind", "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: x}\nspec: {selector: {a: b}, servers: [{bind: 127.0.0.9, port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]}\n", "spec.servers[0].bind", Warning},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, problems := Parse(map[string][]byte{"x.yaml": []byte(tc.document)}, nil, Options{})
			for _, p := range problems {
				if p.Field == tc.field && p.Severity == tc.severity && strings.Contains(p.Message, "this version") {
					return
				}
			}
			t.Errorf("%v", problems)
		})
	}
}
