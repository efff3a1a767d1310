// Package envoyfilter changes what the translator made as EnvoyFilters say: the last resort
// of who knows Envoy, with Istio's rules for what is matched and what is done
// (https://istio.io/latest/docs/reference/config/networking/envoy-filter/).
//
// What Writ itself decides by stays: filters whose names begin with "writ." can be a place
// to insert something at, and cannot be removed, replaced or changed, and neither can
// clusters whose names begin with "writ-".
package envoyfilter

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/writ-mesh/writ/pilot/envoyfilter/patchvalue"
	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/translate"
)

// Names that begin so are Writ's own.
const (
	ownFilter  = "writ."
	ownCluster = "writ-"
)

// Filters are the EnvoyFilters of a mesh. It is safe for concurrent use.
type Filters struct {
	mesh *model.Mesh
	// patches are those of each object that can be for a proxy of ours.
	patches map[*model.EnvoyFilter][]*patch
	// sets are *patchSet by the objects that it is made of.
	sets sync.Map
}

// patch is one of an object's configPatches.
type patch struct {
	ref       model.Ref
	applyTo   networking.EnvoyFilter_ApplyTo
	operation networking.EnvoyFilter_Patch_Operation
	context   networking.EnvoyFilter_PatchContext
	match     *networking.EnvoyFilter_EnvoyConfigObjectMatch
	// value is shared and must not be changed; nil for one that removes.
	value proto.Message
}

// New reads the EnvoyFilters of a mesh. The error names the object that cannot be read.
func New(m *model.Mesh) (*Filters, error) {
	f := &Filters{mesh: m, patches: map[*model.EnvoyFilter][]*patch{}}
	for _, o := range m.EnvoyFilters {
		for i, c := range o.Spec.GetConfigPatches() {
			if c.GetMatch().GetContext() == networking.EnvoyFilter_WAYPOINT || c.GetApplyTo() == networking.EnvoyFilter_BOOTSTRAP || asksVersion(c.GetMatch()) {
				continue
			}
			p := &patch{ref: o.Ref, applyTo: c.GetApplyTo(), operation: operationOf(c), context: c.GetMatch().GetContext(), match: c.GetMatch()}
			if v := c.GetPatch().GetValue(); v != nil || p.operation != networking.EnvoyFilter_Patch_REMOVE {
				var err error
				if p.value, _, err = patchvalue.Of(c.GetApplyTo(), v); err != nil {
					return nil, fmt.Errorf("%s: configPatches[%d]: %w", o.Ref, i, err)
				}
			}
			f.patches[o] = append(f.patches[o], p)
		}
	}
	return f, nil
}

// asksVersion says that a patch is for proxies of a version of Istio, or of some metadata
// of theirs: ours have neither.
func asksVersion(m *networking.EnvoyFilter_EnvoyConfigObjectMatch) bool {
	return m.GetProxy().GetProxyVersion() != "" || len(m.GetProxy().GetMetadata()) > 0
}

// operationOf has what cannot be inserted anywhere in particular added.
func operationOf(c *networking.EnvoyFilter_EnvoyConfigObjectPatch) networking.EnvoyFilter_Patch_Operation {
	op := c.GetPatch().GetOperation()
	switch c.GetApplyTo() {
	case networking.EnvoyFilter_HTTP_FILTER, networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_ROUTE, networking.EnvoyFilter_LISTENER_FILTER:
		return op
	}
	switch op {
	case networking.EnvoyFilter_Patch_INSERT_AFTER, networking.EnvoyFilter_Patch_INSERT_BEFORE, networking.EnvoyFilter_Patch_INSERT_FIRST:
		return networking.EnvoyFilter_Patch_ADD
	}
	return op
}

// patchSet are the patches for some proxies.
type patchSet struct {
	byKind map[networking.EnvoyFilter_ApplyTo][]*patch
	// shared has what proxies have in common, changed, by commonKey.
	shared sync.Map
}

// commonKey tells apart what comes of the resources that several proxies have.
type commonKey struct {
	from *translate.Snapshot
	of   model.ProxyType
}

// common is made once.
type common func() (*translate.Snapshot, error)

// Apply changes the resources of a proxy: its own, and those that it has in common with
// others. Where nothing is for it they are returned as they are. The error names the
// object that cannot be applied.
func (f *Filters) Apply(p *model.Proxy, own, shared *translate.Snapshot) (changedOwn, changedShared *translate.Snapshot, err error) {
	set := f.setOf(p)
	if set == nil {
		return own, shared, nil
	}
	a := &applier{patchSet: set, mesh: f.mesh, proxy: p}
	made, _ := set.shared.LoadOrStore(commonKey{shared, p.Type}, common(sync.OnceValues(func() (*translate.Snapshot, error) { return a.snapshot(shared) })))
	if changedShared, err = made.(common)(); err != nil { //nolint:forcetypeassert // stored here only
		return nil, nil, err
	}
	if changedOwn, err = a.snapshot(own); err != nil {
		return nil, nil, err
	}
	if changedOwn, err = a.add(changedOwn, changedShared); err != nil {
		return nil, nil, err
	}
	return changedOwn, changedShared, nil
}

// setOf gives the patches for a proxy, nil for none.
func (f *Filters) setOf(p *model.Proxy) *patchSet {
	if len(f.patches) == 0 {
		return nil
	}
	var key strings.Builder
	var all []*patch
	for _, o := range f.mesh.EnvoyFiltersOf(p) {
		if len(f.patches[o]) > 0 {
			fmt.Fprintf(&key, "%s/%s ", o.Namespace, o.Name)
			all = append(all, f.patches[o]...)
		}
	}
	if len(all) == 0 {
		return nil
	}
	if known, ok := f.sets.Load(key.String()); ok {
		return known.(*patchSet) //nolint:forcetypeassert // stored here only
	}
	set := &patchSet{byKind: map[networking.EnvoyFilter_ApplyTo][]*patch{}}
	for _, p := range all {
		set.byKind[p.applyTo] = append(set.byKind[p.applyTo], p)
	}
	known, _ := f.sets.LoadOrStore(key.String(), set)
	return known.(*patchSet) //nolint:forcetypeassert // stored here only
}

// applier applies patches to the resources of one proxy.
type applier struct {
	*patchSet
	mesh  *model.Mesh
	proxy *model.Proxy
}

// change is what is being changed, and who did.
type change struct {
	context networking.EnvoyFilter_PatchContext
	by      []model.Ref
	err     error
}

// holds says that a patch is for this context.
func (c *change) holds(p *patch) bool {
	return p.context == networking.EnvoyFilter_ANY || p.context == c.context
}

// did notes that a patch changed something.
func (c *change) did(p *patch) {
	if !slices.Contains(c.by, p.ref) {
		c.by = append(c.by, p.ref)
	}
}

func (c *change) fail(p *patch, err error) {
	if c.err == nil && err != nil {
		c.err = fmt.Errorf("%s: %w", p.ref, err)
	}
}

// contextOf is where a resource belongs.
func (a *applier) contextOf(inbound bool) networking.EnvoyFilter_PatchContext {
	switch {
	case a.proxy.Type == model.GatewayProxy:
		return networking.EnvoyFilter_GATEWAY
	case inbound:
		return networking.EnvoyFilter_SIDECAR_INBOUND
	}
	return networking.EnvoyFilter_SIDECAR_OUTBOUND
}

func (a *applier) any(kinds ...networking.EnvoyFilter_ApplyTo) bool {
	return slices.ContainsFunc(kinds, func(k networking.EnvoyFilter_ApplyTo) bool { return len(a.byKind[k]) > 0 })
}

func (a *applier) snapshot(from *translate.Snapshot) (*translate.Snapshot, error) {
	out := *from
	for _, list := range []struct {
		of    *[]translate.Resource
		patch func(proto.Message, *change) (kept bool)
		any   bool
	}{
		{&out.Listeners, a.listener, a.any(
			networking.EnvoyFilter_LISTENER, networking.EnvoyFilter_LISTENER_FILTER, networking.EnvoyFilter_FILTER_CHAIN, networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_HTTP_FILTER)},
		{&out.Routes, a.routes, a.any(networking.EnvoyFilter_ROUTE_CONFIGURATION, networking.EnvoyFilter_VIRTUAL_HOST, networking.EnvoyFilter_HTTP_ROUTE)},
		{&out.Clusters, a.cluster, a.any(networking.EnvoyFilter_CLUSTER)},
	} {
		if !list.any {
			continue
		}
		changed := make([]translate.Resource, 0, len(*list.of))
		for _, r := range *list.of {
			c := change{}
			m := proto.Clone(r.Message)
			kept := list.patch(m, &c)
			switch {
			case c.err != nil:
				return nil, c.err
			case !kept:
			case len(c.by) == 0:
				changed = append(changed, r)
			default:
				changed = append(changed, translate.Resource{Name: r.Name, Message: m, Sources: append(slices.Clone(r.Sources), c.by...)})
			}
		}
		*list.of = changed
	}
	return &out, nil
}

// add adds the resources that are new: listeners, clusters and extensions.
func (a *applier) add(own, shared *translate.Snapshot) (*translate.Snapshot, error) {
	out := *own
	for _, list := range []struct {
		kind   networking.EnvoyFilter_ApplyTo
		of     *[]translate.Resource
		common []translate.Resource
	}{
		{networking.EnvoyFilter_LISTENER, &out.Listeners, shared.Listeners},
		{networking.EnvoyFilter_CLUSTER, &out.Clusters, shared.Clusters},
		{networking.EnvoyFilter_EXTENSION_CONFIG, &out.Extensions, shared.Extensions},
	} {
		for _, p := range a.byKind[list.kind] {
			if p.operation != networking.EnvoyFilter_Patch_ADD || p.context != networking.EnvoyFilter_ANY && p.context != a.contextOf(true) && p.context != a.contextOf(false) {
				continue
			}
			name := p.value.(interface{ GetName() string }).GetName() //nolint:forcetypeassert // all three have one
			named := func(r translate.Resource) bool { return r.Name == name }
			if slices.ContainsFunc(*list.of, named) || slices.ContainsFunc(list.common, named) {
				return nil, fmt.Errorf("%s: %s %q is there already: give it another name", p.ref, list.kind, name)
			}
			*list.of = append(slices.Clone(*list.of), translate.Resource{Name: name, Message: p.value, Sources: []model.Ref{p.ref}})
		}
		slices.SortFunc(*list.of, func(x, y translate.Resource) int { return strings.Compare(x.Name, y.Name) })
	}
	return &out, nil
}
