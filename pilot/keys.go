package pilot

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/writ-mesh/writ/pilot/keysource"
	"github.com/writ-mesh/writ/pilot/model"
)

// keysFolder in the state directory has the key sets that were good last.
const keysFolder = "key-sets"

func (p *Pilot) openKeys(o Options) {
	keeper := keysource.Options{Guard: o.KeySets, Log: o.Log, Metrics: o.Metrics}
	if o.State != "" {
		keeper.State = filepath.Join(o.State, keysFolder)
	}
	p.keySets = keysource.New(keeper)
}

// setKeys says where keys of token issuers are, and takes up what is known of them.
func (p *Pilot) setKeys(mesh *model.Mesh) {
	p.keySets.Set(keyPlaces(mesh))
	p.keys = p.keySets.Sets()
}

// rekey puts into force what came from token issuers.
func (p *Pilot) rekey() {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.besides
	p.keys = p.keySets.Sets()
	if p.current != nil && !before.same(p.besides) {
		p.compile(p.current.mesh, time.Now())
	}
	p.notify()
}

// keyPlaces are the places from which a mesh wants keys, each once.
func keyPlaces(m *model.Mesh) []keysource.Place {
	by := map[string]*keysource.Place{}
	for _, ra := range m.RequestAuthentications {
		for _, rule := range ra.Spec.GetJwtRules() {
			at, ok := m.KeyPlace(ra.Namespace, rule)
			if !ok {
				continue
			}
			p := by[at.Key()]
			if p == nil {
				p = &keysource.Place{KeyPlace: at}
				by[at.Key()] = p
			}
			p.Issuers = append(p.Issuers, cmp.Or(rule.GetIssuer(), "any"))
			p.Timeout = max(p.Timeout, rule.GetTimeout().AsDuration())
		}
	}
	var out []keysource.Place
	for _, key := range slices.Sorted(maps.Keys(by)) {
		p := by[key]
		slices.Sort(p.Issuers)
		p.Issuers = slices.Compact(p.Issuers)
		out = append(out, *p)
	}
	return out
}
