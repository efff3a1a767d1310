package authz

import (
	"fmt"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/rego"
)

// readOf gives what the policies that were asked read of a request by name, without
// secrets. Method, path, host and the like are in every record; bodies are in none.
func readOf(req *authv3.CheckRequest, programs []*rego.Program, redact *decisionlog.Redactor) map[string]string {
	var out map[string]string
	put := func(key, value string) {
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
	}
	headers := req.GetAttributes().GetRequest().GetHttp().GetHeaders()
	for _, p := range programs {
		for _, h := range p.Headers() {
			if v, ok := headers[h]; ok {
				put("header "+h, redact.Header(h, v))
			}
		}
		if len(p.Claims()) == 0 {
			continue
		}
		claims := envoyPayload(req).GetFields()
		for _, c := range p.Claims() {
			if v, ok := claims[c]; ok {
				put("claim "+c, fmt.Sprint(redact.Claim(c, v.AsInterface())))
			}
		}
	}
	return out
}
