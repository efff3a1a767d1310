package pilot

import (
	"slices"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
	"github.com/writ-mesh/writ/pilot/xds"
)

// blame names the objects behind a refusal: of the resources that the refused
// revision changed for this client, those whose name is in the client's words
// (Envoy names the cluster or listener), else all of that type; of their sources
// those that the revision changed, else all. words are for people; refs are empty
// where resources were made of no object.
func blame(e xds.Event, refused, good *compiled) (refs []model.Ref, words []string) {
	if refused == nil {
		return nil, names(e.Resources)
	}
	changed := slices.DeleteFunc(slices.Clone(e.Resources), func(r *xds.Resource) bool {
		old := goodResource(good, e, r.Name)
		return old != nil && old.Version == r.Version
	})
	if len(changed) == 0 {
		changed = e.Resources
	}
	if named := mentioned(changed, e.Detail); len(named) > 0 {
		changed = named
	}
	var all, fresh []model.Ref
	for _, r := range changed {
		for _, ref := range r.Sources {
			if slices.Contains(all, ref) {
				continue
			}
			all = append(all, ref)
			if good == nil || refused.digests.objects[ref.ID()] != good.digests.objects[ref.ID()] {
				fresh = append(fresh, ref)
			}
		}
	}
	if len(fresh) > 0 {
		all = fresh
	}
	if len(all) == 0 {
		return nil, names(changed)
	}
	words = make([]string, len(all))
	for i, ref := range all {
		words[i] = ref.String()
	}
	return all, words
}

// goodResource is what the last good revision has for the client under that name.
func goodResource(good *compiled, e xds.Event, name string) *xds.Resource {
	if good == nil {
		return nil
	}
	if e.Client.Kind == xds.ServiceKind {
		return good.snapshot.Services.Set(e.TypeURL).Get(name)
	}
	return good.snapshot.Proxies[e.Client.ID].Set(e.TypeURL).Get(name)
}

func mentioned(list []*xds.Resource, detail string) []*xds.Resource {
	var out []*xds.Resource
	for _, r := range list {
		if r.Name != "" && strings.Contains(detail, r.Name) {
			out = append(out, r)
		}
	}
	return out
}

// names stands in where resources were made of no object.
func names(list []*xds.Resource) []string {
	out := make([]string, len(list))
	for i, r := range list {
		out[i] = "resource " + r.Name
	}
	return out
}
