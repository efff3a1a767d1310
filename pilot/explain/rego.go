package explain

import (
	"errors"
	"maps"
	"net/netip"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Where Envoy leaves the payload of a verified token in a check.
const (
	jwtFilter  = "envoy.filters.http.jwt_authn"
	jwtPayload = "payload"
)

// rego asks the RegoPolicies, each with the check that Envoy would send.
func (l *life) rego() error {
	for _, p := range l.policies.Rego {
		s := Step{Name: "RegoPolicy", By: p.ID(), At: place(p.Ref), Runs: inAuthz, Result: Allowed}
		if l.d.Where != nil {
			s.Runs, s.Detail = l.d.Where(l.to.proxy, l.to.port, p)
		}
		if l.d.Rego == nil || p.Module == "" {
			s.Result, s.Detail = Depends, "its bundle is not read here: what it decides cannot be told"
			l.depends = l.depends || !p.Observe
			l.pass(s)
			continue
		}
		allowed, reason, err := l.d.Rego(p, l.check(p), l.issuer, l.r.Claims)
		status := 403
		if errors.Is(err, ErrMalformed) {
			status = 400
		}
		if err != nil {
			allowed, reason = false, err.Error()
		}
		if reason != "" {
			s.Detail = strings.TrimPrefix(s.Detail+"; "+reason, "; ")
		}
		switch {
		case allowed:
			l.pass(s)
		case p.Observe:
			s.Result = recorded
			s.Detail = strings.TrimSuffix("it would refuse, and only observes; "+s.Detail, "; ")
			l.pass(s)
		default:
			l.refuse(s, status)
			return nil
		}
	}
	return nil
}

// check is the request, or the connection, as the filter of Envoy tells it to authz.
func (l *life) check(p *model.RegoPolicy) *authv3.CheckRequest {
	a := &authv3.AttributeContext{
		Source:      &authv3.AttributeContext_Peer{Address: socketAddress(l.r.Source, 0)},
		Destination: &authv3.AttributeContext_Peer{Address: socketAddress(l.r.Destination, l.r.DestinationPort)},
	}
	if l.r.TCP {
		a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: l.r.SNI}
	} else {
		l.checkHTTP(a, p)
	}
	if l.r.Principal != "" {
		a.Source.Principal = spiffeScheme + l.r.Principal
		a.Destination.Principal = spiffeScheme + principalOf(l.m, l.to.proxy)
	}
	if claims, err := structpb.NewStruct(l.r.Claims); err == nil && l.r.Claims != nil {
		a.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			jwtFilter: {Fields: map[string]*structpb.Value{jwtPayload: structpb.NewStructValue(claims)}},
		}}
	}
	return &authv3.CheckRequest{Attributes: a}
}

// checkHTTP adds what only requests have.
func (l *life) checkHTTP(a *authv3.AttributeContext, p *model.RegoPolicy) {
	headers := map[string]string{":method": l.r.Method, ":path": l.path, ":authority": l.r.Host, ":scheme": "http"}
	maps.Copy(headers, l.r.Headers)
	a.Request = &authv3.AttributeContext_Request{
		Time: timestamppb.New(l.d.Now),
		Http: &authv3.AttributeContext_HttpRequest{
			Method: l.r.Method, Path: l.path, Host: l.r.Host, Scheme: "http", Protocol: "HTTP/2", Headers: headers,
		},
	}
	a.ContextExtensions = map[string]string{"writ.policies": configpb.PolicyRef(p.Namespace, p.Name, p.Fingerprint)}
}

func socketAddress(a netip.Addr, port uint32) *corev3.Address {
	text := ""
	if a.IsValid() {
		text = a.String()
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: text, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
