package meshdir

import (
	"fmt"
	"testing"
)

// TestAsIstioHasIt: single rules of Istio's validation, accepted, warned of or refused
// at a field. What an object refers to need not be there.
func TestAsIstioHasIt(t *testing.T) {
	networking := func(kind, spec string) string {
		return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: x}\nspec: %s\n", kind, spec)
	}
	localities := func(distribute string) string {
		return networking("DestinationRule", "{host: a.example, trafficPolicy: {loadBalancer: {localityLbSetting: {distribute: ["+distribute+"]}}}}")
	}
	entry := func(spec string) string { return networking("ServiceEntry", "{hosts: [a.example], "+spec+"}") }
	const list = "apiVersion: networking.istio.io/%s\nkind: VirtualServiceList\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: x}\n  spec: {ports: [{name: http, port: %d}]}\n"
	for name, c := range map[string]struct {
		file, text, field string
		severity          Severity
	}{
		"a list of one kind":                 {text: fmt.Sprintf(list, "v1", 80)},
		"a bad one in it":                    {text: fmt.Sprintf(list, "v1", 0), field: "items[0].spec.ports[0].port"},
		"a list of a version there is not":   {text: fmt.Sprintf(list, "v1beta9", 80), field: "apiVersion"},
		"a rest after its parts":             {text: localities("{from: a/b, to: {c/d: 50, c/*: 50}}, {from: a/*, to: {c: 100}}, {from: '*', to: {c: 100}}")},
		"a rest before a part":               {text: localities("{from: '*', to: {c: 100}}, {from: a, to: {c: 100}}"), field: "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[1].from"},
		"a region and a part of it":          {text: localities("{from: a, to: {c: 100}}, {from: a/b/c, to: {c: 100}}"), field: "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[1].from"},
		"a zone twice":                       {text: localities("{from: a/b, to: {c: 100}}, {from: a/b/*, to: {c: 100}}"), field: "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[1].from"},
		"TCP by its port alone":              {text: entry("ports: [{number: 9000, name: x, protocol: TCP}]"), field: "spec.ports[0]", severity: Warning},
		"TCP with an address":                {text: entry("addresses: [192.0.2.1], ports: [{number: 9000, name: x, protocol: TCP}]")},
		"TCP with an address by allocation":  {text: entry("resolution: DNS, ports: [{number: 9000, name: x, protocol: TCP}]")},
		"HTTP without an address":            {text: entry("ports: [{number: 9000, name: http-x}]")},
		"a connection within five minutes":   {file: "mesh.yaml", text: "connectTimeout: 5m"},
		"a connection within two hours":      {file: "mesh.yaml", text: "connectTimeout: 2h", field: "connectTimeout"},
		"a trust domain that begins with -":  {file: "mesh.yaml", text: "trustDomain: -a.example", field: "trustDomain"},
		"an alias with an underscore":        {file: "mesh.yaml", text: "trustDomainAliases: [a_b]", field: "trustDomainAliases[0]"},
		"a header of a field's name":         {text: networking("VirtualService", "{hosts: [a.example], http: [{match: [{headers: {method: {exact: GET}}}], route: [{destination: {host: a.example}}]}]}"), field: "spec.http[0].match[0].headers[method]", severity: Warning},
		"the authorities of the machine":     {text: networking("DestinationRule", "{host: a.example, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: system}}}")},
		"a revocation list beside a secret":  {text: networking("Gateway", "{servers: [{port: {number: 443, name: a, protocol: HTTPS}, hosts: ['*'], tls: {mode: MUTUAL, credentialName: a, caCrl: b}}]}")},
		"a revocation list and no clients":   {text: networking("Gateway", "{servers: [{port: {number: 443, name: a, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: a, caCrl: b}}]}"), field: "spec.servers[0].tls.caCrl", severity: Warning},
		"plain HTTP with AUTO_PASSTHROUGH":   {text: networking("Gateway", "{servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*'], tls: {mode: AUTO_PASSTHROUGH, httpsRedirect: true}}]}"), field: "spec.servers[0].tls.mode", severity: Warning},
		"a name between clusters":            {text: networking("VirtualService", "{hosts: [outbound_.80_._.a.example], gateways: [g], tls: [{match: [{sniHosts: [outbound_.80_._.a.example]}], route: [{destination: {host: a.example}}]}]}")},
		"a name between clusters, in HTTP":   {text: networking("VirtualService", "{hosts: [outbound_.80_._.a.example], gateways: [g], http: [{route: [{destination: {host: a.example}}]}]}"), field: "spec.hosts[0]"},
		"a match of a route that is another": {text: networking("VirtualService", "{hosts: [a.example], http: [{match: [{uri: {prefix: /a}}, {uri: {prefix: /ab}}], route: [{destination: {host: a.example}}]}]}"), field: "spec.http[0].match[1]", severity: Warning},
		"a connection that nothing is asked": {text: networking("VirtualService", "{hosts: [a.example], tcp: [{match: [{}], route: [{destination: {host: a.example}}]}, {match: [{port: 1}], route: [{destination: {host: a.example}}]}]}"), field: "spec.tcp[1].match[0]", severity: Warning},
	} {
		t.Run(name, func(t *testing.T) {
			file := c.file
			if file == "" {
				file = "x.yaml"
			}
			f := newParser(&Options{}, false).parse(file, []byte(c.text))
			switch {
			case c.field == "" && len(f.problems) > 0:
				t.Error(f.problems)
			case c.field != "" && (len(f.problems) == 0 || f.problems[0].Field != c.field || f.problems[0].Severity != c.severity || f.problems[0].Line == 0):
				t.Errorf("%v, want a problem of %s", f.problems, c.field)
			}
		})
	}
}
