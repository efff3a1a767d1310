package pilot

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/writ-mesh/writ/pilot/keysource"
	"github.com/writ-mesh/writ/pilot/meshdir"
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

// maxKeyPlaces is how many places the RequestAuthentications of a namespace may name from
// which pilot fetches; those of the root namespace, which is the operator's, any number.
const maxKeyPlaces = 32

// setKeys says where keys of token issuers are, and takes up what is known of them.
func (p *Pilot) setKeys(mesh *model.Mesh) {
	var places []keysource.Place
	places, p.keyProblems = keyPlaces(mesh)
	p.keySets.Set(places)
	p.keys = p.keySets.Sets()
}

// rekey puts into force what came from token issuers.
func (p *Pilot) rekey() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.takeUp(func() { p.keys = p.keySets.Sets() })
	p.notify()
}

// keyPlaces are the places from which a mesh wants keys, each once, and which
// RequestAuthentications name too many.
func keyPlaces(m *model.Mesh) (places []keysource.Place, problems []meshdir.Problem) {
	by, named := map[string]*keysource.Place{}, map[string]map[string]bool{}
	for _, ra := range m.RequestAuthentications {
		own, tooMany := named[ra.Namespace], false
		if own == nil {
			own = map[string]bool{}
			named[ra.Namespace] = own
		}
		for _, rule := range ra.Spec.GetJwtRules() {
			at, ok := m.KeyPlace(ra.Namespace, rule)
			if !ok {
				continue
			}
			key := at.Key()
			if !own[key] && len(own) == maxKeyPlaces && ra.Namespace != m.RootNamespace {
				tooMany = true
				continue
			}
			own[key] = true
			if by[key] == nil {
				by[key] = &keysource.Place{KeyPlace: at}
			}
			by[key].Issuers = append(by[key].Issuers, cmp.Or(rule.GetIssuer(), "any"))
			by[key].Timeout = max(by[key].Timeout, rule.GetTimeout().AsDuration())
		}
		if tooMany {
			problems = append(problems, tooManyPlaces(ra))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(by)) {
		p := by[key]
		slices.Sort(p.Issuers)
		p.Issuers = slices.Compact(p.Issuers)
		places = append(places, *p)
	}
	return places, problems
}

func tooManyPlaces(ra *model.RequestAuthentication) meshdir.Problem {
	return meshdir.Problem{
		File: ra.File, Line: ra.Line, Object: ra.ID(), Field: "spec.jwtRules", Severity: meshdir.Warning,
		Message: fmt.Sprintf("the RequestAuthentications of namespace %s name more than %d places of keys: pilot fetches none from the others, and proxies do only from a jwksUri; name fewer, or write some into the root namespace", ra.Namespace, maxKeyPlaces),
	}
}
