package pilot

import (
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	security "istio.io/api/security/v1beta1"

	"github.com/writ-mesh/writ/internal/identity"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// named is a resource of one of Writ's own types.
type named struct {
	name    string
	message proto.Message
	sources []model.Ref
}

// serviceConfig makes what the other services of Writ get.
func serviceConfig(b *xds.Builder, m *model.Mesh) (*xds.Config, error) {
	placements, err := placements(m)
	if err != nil {
		return nil, err
	}
	var sets []*xds.Set
	for _, t := range []struct {
		url  string
		list []named
	}{
		{xds.NodePlacementType, placements},
		{xds.RegoPolicyType, regoPolicies(m)},
		{xds.TokenIssuerType, tokenIssuers(m)},
		{xds.QuotaPolicyType, quotaPolicies(m)},
	} {
		resources := make([]*xds.Resource, len(t.list))
		for i, n := range t.list {
			if resources[i], err = b.Resource(n.name, n.message, n.sources); err != nil {
				return nil, err
			}
		}
		sets = append(sets, b.Set(t.url, resources))
	}
	return b.Config("", sets...), nil
}

// placements says for each node which workloads the mesh places on it.
func placements(m *model.Mesh) ([]named, error) {
	td, err := spiffeid.TrustDomainFromString(m.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", m.TrustDomain, err)
	}
	byNode := map[string]*configpb.NodePlacement{}
	var nodes []string
	for _, p := range m.Proxies {
		id, err := identity.Workload(td, p.Namespace, p.ServiceAccount)
		if err != nil {
			return nil, fmt.Errorf("identity of %s/%s: %w", p.Namespace, p.Name, err)
		}
		n := byNode[p.Node]
		if n == nil {
			n = &configpb.NodePlacement{Node: p.Node}
			byNode[p.Node] = n
			nodes = append(nodes, p.Node)
		}
		n.Workloads = append(n.Workloads, &configpb.WorkloadPlacement{
			Name: p.Name, Namespace: p.Namespace, SpiffeId: id.String(), ProxyId: p.ID,
			Attestation: &configpb.Attestation{Uid: p.UID},
		})
	}
	slices.Sort(nodes)
	list := make([]named, len(nodes))
	for i, n := range nodes {
		list[i] = named{name: n, message: byNode[n]}
	}
	return list, nil
}

func regoPolicies(m *model.Mesh) []named {
	list := make([]named, len(m.RegoPolicies))
	for i, p := range m.RegoPolicies {
		msg := &configpb.RegoPolicy{
			Name: p.Name, Namespace: p.Namespace, Module: p.Module, Query: p.Query,
			Observe: p.Observe, Source: place(p.Ref), Fingerprint: p.Fingerprint,
		}
		if p.BundleURL != "" {
			msg.Bundle = &configpb.Bundle{Url: p.BundleURL}
			if p.BundleRefresh > 0 {
				msg.Bundle.Refresh = durationpb.New(p.BundleRefresh)
			}
			if k := p.BundleSigning; k.Key != "" {
				msg.Bundle.Signing = &configpb.BundleSigning{Key: k.Key, Algorithm: k.Algorithm, Scope: k.Scope}
			}
			if c := p.BundleCredentials; c.TokenFile+c.CertificateFile+c.KeyFile+c.ClientFile+c.CAFile != "" {
				msg.Bundle.Credentials = &configpb.BundleCredentials{
					TokenFile: c.TokenFile, CertificateFile: c.CertificateFile, KeyFile: c.KeyFile, ClientFile: c.ClientFile, Scopes: c.Scopes, CaFile: c.CAFile,
				}
			}
		}
		list[i] = named{p.Namespace + "/" + p.Name, msg, []model.Ref{p.Ref}}
	}
	return list
}

func quotaPlan(p *model.QuotaPlan) *configpb.QuotaPlan {
	if p == nil {
		return nil
	}
	return &configpb.QuotaPlan{Table: p.Table, By: p.By, Numbers: p.Numbers}
}

func quotaPolicies(m *model.Mesh) []named {
	var list []named
	for _, p := range m.QuotaPolicies {
		if len(p.Limits) == 0 {
			continue // it takes requests out of other limits, which proxies know
		}
		msg := &configpb.QuotaPolicy{Name: p.Name, Namespace: p.Namespace, Observe: p.Observe, Source: place(p.Ref), Told: p.FailLocal, Fingerprint: p.Fingerprint}
		for _, l := range p.Limits {
			limit := &configpb.Limit{Requests: l.Requests, Every: durationpb.New(l.Every), Algorithm: l.Algorithm, Burst: l.Burst, Mode: l.Mode}
			if c := l.Cost; c != nil {
				limit.Cost = &configpb.Cost{Reserve: c.Reserve, Expire: durationpb.New(c.Expire)}
			}
			limit.Plan = quotaPlan(l.Plan)
			if f := l.Fair; f != nil {
				limit.Fair = &configpb.QuotaFair{Weights: f.Weights, Plan: quotaPlan(f.Plan)}
			}
			for _, d := range l.Per {
				limit.Per = append(limit.Per, d.Text)
			}
			msg.Limits = append(msg.Limits, limit)
		}
		list = append(list, named{p.Namespace + "/" + p.Name, msg, []model.Ref{p.Ref}})
	}
	return list
}

func tokenIssuers(m *model.Mesh) []named {
	var list []named
	for _, ra := range m.RequestAuthentications {
		for i, r := range ra.Spec.GetJwtRules() {
			t := tokenIssuer(r)
			t.MeshWide = ra.Namespace == m.RootNamespace
			list = append(list, named{fmt.Sprintf("%s/%s/%d", ra.Namespace, ra.Name, i), t, []model.Ref{ra.Ref}})
		}
	}
	return list
}

func tokenIssuer(r *security.JWTRule) *configpb.TokenIssuer {
	t := &configpb.TokenIssuer{
		Issuer: r.GetIssuer(), Audiences: r.GetAudiences(), Jwks: r.GetJwks(), JwksUri: r.GetJwksUri(),
		FromParams: r.GetFromParams(), FromCookies: r.GetFromCookies(),
	}
	for _, h := range r.GetFromHeaders() {
		t.FromHeaders = append(t.FromHeaders, &configpb.HeaderLocation{Name: h.GetName(), Prefix: h.GetPrefix()})
	}
	return t
}

// place is "<file>:<line>", empty for what was made up.
func place(r model.Ref) string {
	if r.File == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", r.File, r.Line)
}
