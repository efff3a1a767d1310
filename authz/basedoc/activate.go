package basedoc

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// activatorName is what OPA knows us by.
const activatorName = "writ"

// Register makes this package known to OPA, whose list has no lock: before OPA reads or
// activates anything.
func Register() { register() }

var register = sync.OnceFunc(func() {
	opabundle.RegisterActivator(activatorName, activator{})
	opabundle.RegisterStoreFunc(func() storage.Store { return inmem.New() })
})

// Everywhere makes OPA leave the data of all bundles as they are in their files until a
// store takes them, and put them into a [Store] by way of this package; other stores are
// filled as ever. Without it that is so for bundles by HTTP only, and their data are read
// twice. OPA has one such switch in the process, and its discovery does not understand
// it: a bundle of discovery that comes from a registry or from disk would have no data.
func Everywhere() {
	register()
	everywhere()
}

var everywhere = sync.OnceFunc(func() { opabundle.RegisterDefaultBundleActivator(activatorName) })

// activator is OPA's own, but that the data of bundles are read once, by us. OPA reads
// them before to see whether they are below the bundle's roots, which takes as much time
// again and three times the memory.
type activator struct{}

// Activate implements OPA's bundle.Activator.
func (activator) Activate(o *opabundle.ActivateOpts) error {
	s, ok := o.Store.(*Store)
	if !ok || len(o.Bundles) == 0 { // a query's own modules are compiled in a transaction that only reads
		return (&opabundle.DefaultActivator{}).Activate(o)
	}
	t, err := s.writer(o.Txn)
	if err != nil {
		return err
	}
	if s.around != nil {
		return s.around(o, func() error { return t.activate(o) })
	}
	return t.activate(o)
}

// activate reads the data of bundles and has OPA do the rest.
func (t *transaction) activate(o *opabundle.ActivateOpts) error {
	bundles := o.Bundles
	o.Bundles = maps.Clone(bundles)
	defer func() { o.Bundles, t.staged = bundles, nil }()
	for name, b := range bundles {
		var err error
		if o.Bundles[name], err = t.stage(b); err != nil {
			return err
		}
	}
	return (&opabundle.DefaultActivator{}).Activate(o)
}

// stage reads the data of a bundle, and gives the bundle with nothing in their place. By
// that Truncate finds what was read.
func (t *transaction) stage(b *opabundle.Bundle) (*opabundle.Bundle, error) {
	out := *b
	out.Raw = slices.Clone(b.Raw)
	var roots *rootSet
	if b.Manifest.Roots != nil {
		roots = newRootSet(*b.Manifest.Roots)
	}
	for i, file := range out.Raw {
		if strings.HasSuffix(file.Path, opabundle.RegoExt) {
			continue
		}
		doc, err := parse(file.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.Path, err)
		}
		if roots != nil {
			where := filepath.ToSlash(filepath.Dir(strings.Trim(filepath.ToSlash(file.Path), "/")))
			if err := roots.hold(value{doc: doc}, where); err != nil {
				return nil, err
			}
		}
		empty := []byte("{}")
		out.Raw[i].Value = empty
		if t.staged == nil {
			t.staged = make(map[*byte]*document)
		}
		t.staged[&empty[0]] = doc
	}
	return &out, nil
}
