package proxyconfig

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/pkitest"
)

// dump is an answer of /config_dump of these configs.
func dump(configs ...string) []byte {
	return []byte(`{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": {}},` + strings.Join(configs, ",") + `]}`)
}

func config(kind, fields string) string {
	return `{"@type": "type.googleapis.com/envoy.admin.v3.` + kind + `ConfigDump", ` + fields + `}`
}

func parsed(t *testing.T, configs ...string) *Dump {
	t.Helper()
	d, err := Parse(dump(configs...))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestClusters(t *testing.T) {
	d := parsed(t, config("Clusters", `
		"static_clusters": [{"cluster": {"name": "pilot", "type": "STATIC"}}],
		"dynamic_active_clusters": [
			{"version_info": "7", "cluster": {"name": "outbound|80|v1|b.default.svc.cluster.local", "type": "EDS"}},
			{"version_info": "7", "cluster": {"name": "inbound|8080||"}},
			{"version_info": "7", "cluster": {"name": "a|b|c|d", "cluster_type": {"name": "envoy.clusters.dynamic_forward_proxy"}}, "error_state": {"details": "no"}}],
		"dynamic_warming_clusters": [{"version_info": "8", "cluster": {"name": "later", "type": "STRICT_DNS"}}]`))
	var got []string
	for _, c := range d.Clusters {
		got = append(got, strings.Join([]string{c.Direction, c.Port, c.Subset, c.Host, c.Type, c.State, c.Version, c.Error}, " "))
	}
	want := `outbound 80 v1 b.default.svc.cluster.local EDS active 7 
inbound 8080   STATIC active 7 
   a|b|c|d envoy.clusters.dynamic_forward_proxy active 7 no
   later STRICT_DNS warming 8 
   pilot STATIC static  `
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	if out, err := json.Marshal(d.Clusters[0]); err != nil || !strings.Contains(string(out), `"config":{"name":"outbound|80|v1|b.default.svc.cluster.local","type":"EDS"}`) {
		t.Errorf("%s %v", out, err)
	}
}

func TestListeners(t *testing.T) {
	listener := func(name, more string) string {
		return `{"version_info": "3", "listener": {"name": "` + name + `", "address": {"socket_address": {"address": "127.0.0.2", "port_value": 80}}` + more + `}}`
	}
	d := parsed(t, config("Listeners", `
		"static_listeners": [{"listener": {"name": "inside", "internal_listener": {}, "default_filter_chain": {"filters": []}}}],
		"dynamic_listeners": [
			{"name": "in", "active_state": `+listener("in", `, "filter_chains": [
				{"filter_chain_match": {"transport_protocol": "tls", "server_names": ["a", "b"], "application_protocols": ["h2"]},
				 "filters": [{"typed_config": {"@type": "x.RBAC"}}, {"typed_config": {"@type": "type.googleapis.com/envoy.HttpConnectionManager", "rds": {"route_config_name": "r"}}}]},
				{"filter_chain_match": {"prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}], "destination_port": 9, "source_prefix_ranges": [{"address_prefix": "::1", "prefix_len": 128}]},
				 "filters": [{"typed_config": {"@type": "x.TcpProxy", "cluster": "c"}}]},
				{"filters": [{"typed_config": {"@type": "x.TcpProxy", "weighted_clusters": {"clusters": [{"name": "c", "weight": 1}, {"name": "d", "weight": 3}]}}}]}],
				"default_filter_chain": {"filters": [{"typed_config": {"@type": "x.HttpConnectionManager", "route_config": {}}}]}`)+`,
			 "warming_state": `+listener("in", "")+`, "error_state": {"details": "bad"}},
			{"name": "never", "error_state": {"details": "worse"}}]`))
	var got []string
	for _, l := range d.Listeners {
		got = append(got, fmt.Sprint(l.Name, " ", l.Address, " ", l.Port, " ", l.State, " ", l.Error))
		for _, c := range l.Chains {
			got = append(got, " "+c.Match+" -> "+c.Destination)
		}
	}
	want := `in 127.0.0.2 80 active bad
 tls, SNI a or b, ALPN h2 -> routes r
 to 10.0.0.0/8, port 9, from ::1/128 -> cluster c
 all -> cluster c (weight 1), d (weight 3)
 what no other chain takes -> routes inside the listener
in 127.0.0.2 80 warming bad
never  0 refused worse
inside inside Envoy 0 static 
 what no other chain takes -> nowhere`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestRoutes(t *testing.T) {
	d := parsed(t, config("Routes", `"dynamic_route_configs": [{"version_info": "5", "route_config": {"name": "80", "virtual_hosts": [{"name": "b", "domains": ["b", "b:80"], "routes": [
		{"match": {"prefix": "/a"}, "route": {"cluster": "c"}},
		{"match": {"path": "/x", "case_sensitive": false}, "redirect": {"host_redirect": "h", "path_redirect": "/y", "https_redirect": true}},
		{"match": {"path_separated_prefix": "/s"}, "route": {"weighted_clusters": {"clusters": [{"name": "c", "weight": 9}, {"name": "d", "weight": 1}]}}},
		{"match": {"safe_regex": {"regex": "/.*"}, "headers": [
			{"name": ":method", "string_match": {"exact": "GET"}}, {"name": "x", "present_match": true, "invert_match": true}, {"name": "y", "string_match": {"prefix": "p", "ignore_case": true}}],
		  "query_parameters": [{"name": "q", "string_match": {"safe_regex": {"regex": "1+"}}}]}, "direct_response": {"status": 418}},
		{"match": {"connect_matcher": {}}, "route": {"cluster_header": "x-to"}},
		{"match": {"prefix": "/"}, "redirect": {}}]}]}}]`))
	var got []string
	for _, r := range d.Routes {
		got = append(got, fmt.Sprint(r.Name, " ", r.VirtualHost, " ", r.Domains, " ", r.Match, " -> ", r.Destination))
	}
	want := `80 b [b b:80] /a* -> c
80 b [b b:80] /x in any case -> redirect to h/y by HTTPS
80 b [b b:80] /s, /s/* -> c (weight 9), d (weight 1)
80 b [b b:80] regex /.*, :method = GET, not x, y = p* in any case, query q = regex 1+ -> answer 418
80 b [b b:80] CONNECT -> the cluster that the header x-to names
80 b [b b:80] /* -> redirect to the same host`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestSecrets(t *testing.T) {
	root := pkitest.NewRoot(t, "cluster.local")
	chain := base64.StdEncoding.EncodeToString(root.PEM())
	d := parsed(t, config("Secrets", `
		"dynamic_active_secrets": [
			{"name": "own", "version_info": "1", "secret": {"tls_certificate": {"certificate_chain": {"inline_bytes": "`+chain+`"}, "private_key": {"inline_bytes": "`+base64.StdEncoding.EncodeToString([]byte("very secret"))+`"}}}},
			{"name": "roots", "secret": {"validation_context": {"custom_validator_config": {"typed_config": {"trust_domains": [{"name": "d", "trust_bundle": {"inline_bytes": "`+chain+`"}}]}}}}}],
		"dynamic_warming_secrets": [{"name": "later"}, {"name": "odd", "secret": {"tls_certificate": {"certificate_chain": {"inline_string": "no PEM"}}}}]`))
	var got []string
	for _, s := range d.Secrets {
		got = append(got, fmt.Sprint(s.Name, " ", s.Kind, " ", s.State, " ", s.Certificates, " ", s.Names, " ", s.NotAfter.Equal(root.Cert.NotAfter)))
	}
	want := `own certificate chain active 1 [spiffe://cluster.local] true
roots trusted certificates active 1 [spiffe://cluster.local] true
later other warming 0 [] false
odd certificate chain warming 0 [] false`
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	out, err := json.Marshal(d.Secrets)
	if err != nil || strings.Contains(string(out), base64.StdEncoding.EncodeToString([]byte("very secret"))) || strings.Contains(string(out), "private_key") {
		t.Errorf("%s %v", out, err)
	}
}

func TestEndpoints(t *testing.T) {
	all, err := ParseEndpoints([]byte(`{"cluster_statuses": [{"name": "c", "host_statuses": [
		{"address": {"socket_address": {"address": "::1", "port_value": 80}}, "health_status": {"eds_health_status": "HEALTHY"}, "weight": 3, "priority": 1, "locality": {"region": "r", "zone": "z"}},
		{"address": {"pipe": {"path": "/x"}}, "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": true}},
		{"address": {"envoy_internal_address": {"server_listener_name": "l"}}, "health_status": {"eds_health_status": "HEALTHY", "failed_active_health_check": true}}]}, {"name": "none"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := `[{c [::1]:80 HEALTHY false 3 1 r/z} {c unix:///x HEALTHY true 0 0 } {c inside Envoy: l FAILED false 0 0 }]`
	if got := fmt.Sprint(all); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// bad answers, each with a part of what is said of it.
var bad = map[string]string{
	``:                   "it is empty",
	`[]`:                 "no answer of /config_dump",
	`{}`:                 `it has no "configs"`,
	`{"configs": [`:      "unexpected end",
	`{"configs": [{}]}x`: "invalid character",
	`{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "static_clusters": [{}]}]}`:                                           "configs[0]",
	`{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs": [{"route_config": {"name": 7}}]}]}`:            "a route configuration",
	`{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [{"name": "l", "active_state": {}}]}]}`:         "listener l",
	`{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": [{"name": "s", "secret": ["no object"]}]}]}`: "secret s",
}

func TestBadDumps(t *testing.T) {
	for text, want := range bad {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := ParseEndpoints([]byte(`{"configs": []}`)); err == nil || !strings.Contains(err.Error(), `it has no "cluster_statuses"`) {
		t.Error(err)
	}
}

// FuzzParse: whatever is in a file that somebody sent, it is read or refused, and what is
// read can be printed.
func FuzzParse(f *testing.F) {
	for text := range bad {
		f.Add([]byte(text))
	}
	f.Add(dump(config("Clusters", `"dynamic_active_clusters": [{"version_info": "7", "cluster": {"name": "outbound|80|v1|b", "type": "EDS"}}]`)))
	f.Add(dump(config("Routes", `"dynamic_route_configs": [{"route_config": {"virtual_hosts": [{"routes": [{"match": {"headers": [{}]}}]}]}}]`)))
	f.Add(dump(config("Listeners", `"dynamic_listeners": [{"active_state": {"listener": {"filter_chains": [{"filters": [{}]}]}}}]`)))
	f.Add(dump(config("Secrets", `"static_secrets": [{"secret": {"tls_certificate": {"certificate_chain": {"inline_bytes": "LS0t"}}}}]`)))
	f.Add([]byte(`{"cluster_statuses": [{"host_statuses": [{}]}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse(data)
		if err == nil {
			if _, err := json.Marshal(d); err != nil {
				t.Errorf("%s: %v", data, err)
			}
		}
		if e, err := ParseEndpoints(data); err == nil && e == nil {
			t.Error("neither endpoints nor an error")
		}
	})
}
