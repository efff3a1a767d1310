package security

import (
	"fmt"
	"maps"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/writ-mesh/writ/pilot/envoy"
	"github.com/writ-mesh/writ/pilot/model"
)

// Revocations are what one revision refuses whatever policies say: revoked callers and
// tokens.
type Revocations struct {
	// callers is the content of filterRevoked, nil if nobody is revoked.
	callers *anypb.Any
	tokens  model.RevokedTokens
	authz   bool
}

// Revocations gives what is revoked, without the mesh that it was compiled for.
func (c *Compiler) Revocations() *Revocations {
	return &Revocations{callers: c.revoked, tokens: c.mesh.Tokens, authz: c.mesh.Deciders.Authz != ""}
}

// Renew puts what is revoked into a route configuration of an earlier revision, of a port
// or gateway whose connections drain, in place of what was revoked then. Nothing else
// changes: policies there go with the listener of then (decision 0042). It is nil if the
// routes have it.
//
// A listener from before there was an authz has no filter to ask it about tokens.
func (r *Revocations) Renew(routes *anypb.Any) (*anypb.Any, error) {
	var config routev3.RouteConfiguration
	if err := routes.UnmarshalTo(&config); err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	changed := false
	for _, host := range config.GetVirtualHosts() {
		its, err := r.renewHost(host)
		if err != nil {
			return nil, fmt.Errorf("virtual host %s: %w", host.GetName(), err)
		}
		changed = changed || its
	}
	if !changed {
		return nil, nil
	}
	return envoy.Any(&config), nil
}

func (r *Revocations) renewHost(host *routev3.VirtualHost) (changed bool, err error) {
	before := proto.CloneOf(host)
	putFilter(host, filterRevoked, r.callers)
	if host.GetTypedPerFilterConfig()[filterJWT] != nil {
		err = r.renewTokens(host)
	}
	return !proto.Equal(before, host), err
}

// renewTokens is for a virtual host that has tokens verified.
func (r *Revocations) renewTokens(host *routev3.VirtualHost) error {
	payloads := payloadsOf(host.GetMetadata())
	tokens := newTokenRules(&r.tokens, r.authz, append([]string{jwtPayload}, payloads...)...)
	others, err := notOfTokens(host.GetTypedPerFilterConfig()[filterTokens])
	if err != nil {
		return fmt.Errorf("filter %s: %w", filterTokens, err)
	}
	if len(others) > 0 {
		maps.Copy(others, tokens.policies)
		tokens.refuse = refuseTokens(others)
	}
	putFilter(host, filterTokens, tokens.refuse)
	var ask *anypb.Any
	if tokens.remote {
		ask = askAboutTokens()
	}
	putFilter(host, filterTokensRemote, ask)
	named := host.GetMetadata().GetFilterMetadata()[metadataNamespace].GetFields()
	switch of := named[nameRego].GetStringValue(); {
	case tokens.remote && of == "":
		named = maps.Clone(named)
		if named == nil {
			named = map[string]*structpb.Value{}
		}
		named[nameRego] = structpb.NewStringValue(kindTokenRevocation)
	case !tokens.remote && of == kindTokenRevocation:
		named = maps.Clone(named)
		delete(named, nameRego)
	}
	putMetadata(host, metadataNamespace, named)
	putMetadata(host, metadataTokens, withPayloads(tokens.values, payloads))
	return nil
}

// notOfTokens are the rules of filterTokens that are no revocations.
func notOfTokens(filter *anypb.Any) (map[string]*rbacv3.Policy, error) {
	if filter == nil {
		return nil, nil
	}
	var rbac rbachttpv3.RBACPerRoute
	if err := filter.UnmarshalTo(&rbac); err != nil {
		return nil, err
	}
	policies := rbac.GetRbac().GetRules().GetPolicies()
	maps.DeleteFunc(policies, func(name string, _ *rbacv3.Policy) bool { return strings.HasPrefix(name, kindTokenRevocation+" ") })
	return policies, nil
}

// putFilter gives a virtual host the content of a filter, none if that is nil.
func putFilter(host *routev3.VirtualHost, name string, content *anypb.Any) {
	if content == nil {
		delete(host.GetTypedPerFilterConfig(), name)
		return
	}
	if host.TypedPerFilterConfig == nil {
		host.TypedPerFilterConfig = map[string]*anypb.Any{}
	}
	host.TypedPerFilterConfig[name] = content
}

// putMetadata gives a virtual host the metadata of a namespace, none if there are no fields.
func putMetadata(host *routev3.VirtualHost, namespace string, fields map[string]*structpb.Value) {
	if len(fields) > 0 {
		if host.GetMetadata().GetFilterMetadata() == nil {
			host.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
		}
		host.Metadata.FilterMetadata[namespace] = &structpb.Struct{Fields: fields}
		return
	}
	delete(host.GetMetadata().GetFilterMetadata(), namespace)
	if len(host.GetMetadata().GetFilterMetadata()) == 0 {
		host.Metadata = nil
	}
}

// metadataPayloads is beside the claims under metadataTokens. It lists where the payloads
// of tokens are besides the usual place, so that virtual hosts say it themselves.
const metadataPayloads = "payloads"

// withPayloads adds the list to the values of revoked tokens, which others share.
func withPayloads(values map[string]*structpb.Value, keys []string) map[string]*structpb.Value {
	if len(keys) == 0 {
		return values
	}
	list := &structpb.ListValue{}
	for _, key := range keys {
		list.Values = append(list.Values, structpb.NewStringValue(key))
	}
	out := map[string]*structpb.Value{metadataPayloads: structpb.NewListValue(list)}
	maps.Copy(out, values)
	return out
}

func payloadsOf(m *corev3.Metadata) (keys []string) {
	for _, v := range m.GetFilterMetadata()[metadataTokens].GetFields()[metadataPayloads].GetListValue().GetValues() {
		keys = append(keys, v.GetStringValue())
	}
	return keys
}
