package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/keys"
	"github.com/open-policy-agent/opa/v1/plugins"
	bundleplugin "github.com/open-policy-agent/opa/v1/plugins/bundle"

	"github.com/writ-mesh/writ/authz/background"
	"github.com/writ-mesh/writ/authz/unpack"
	"github.com/writ-mesh/writ/internal/atomicfile"
)

// arrival says how a bundle that comes wrapped has to be read. OPA does not know: it
// takes the archive around it, which nobody signed, and unpacks nothing of it.
type arrival struct {
	verify    *opabundle.VerificationConfig
	sizeLimit int64
	persist   bool
	// limit is how many bytes it may unpack to.
	limit int64
}

// arrivals finds the bundles of a configuration that come by HTTP, has their guards wrap
// them and takes out of boot what OPA would otherwise ask of the archives around them.
// With discovery, which brings bundles of its own, with the one bundle of OPA's first
// years and with what is wrong everything stays as it is.
func (m *Manager) arrivals(boot map[string]any, guards map[string]*guarded) {
	sections, ok := boot["bundles"].(map[string]any)
	if !ok || boot["discovery"] != nil || boot["bundle"] != nil {
		return
	}
	sources, err := readSources(boot, guards)
	if err != nil {
		return // OPA will say what is wrong
	}
	found := make(map[string]*arrival, len(sources))
	for name, s := range sources {
		g := guards[guardPrefix+s.Service]
		section, ok := sections[name].(map[string]any)
		if strings.HasPrefix(s.Resource, "file:") || g == nil || strings.EqualFold(g.service.Type, "oci") || !ok {
			continue
		}
		g.wraps, g.beside = true, m.beside
		delete(section, "signing")
		delete(section, "size_limit_bytes")
		found[name] = &arrival{verify: s.Signing, sizeLimit: s.SizeLimitBytes, persist: s.Persist, limit: m.options.Limits.Unpacked}
	}
	m.arriving = found
}

// readSources reads the section as OPA does.
func readSources(boot map[string]any, guards map[string]*guarded) (map[string]*bundleplugin.Source, error) {
	section, err := json.Marshal(boot["bundles"])
	if err != nil {
		return nil, err
	}
	rawKeys, err := json.Marshal(boot["keys"])
	if err != nil {
		return nil, err
	}
	verify, err := keys.ParseKeysConfig(orNothing(rawKeys))
	if err != nil {
		return nil, err
	}
	var services []string
	for name := range guards {
		services = append(services, strings.TrimPrefix(name, guardPrefix))
	}
	trigger := plugins.DefaultTriggerMode
	c, err := bundleplugin.NewConfigBuilder().WithBytes(section).WithServices(services).WithKeyConfigs(verify).WithTriggerMode(&trigger).Parse()
	if err != nil {
		return nil, err
	}
	return c.Bundles, nil
}

// errUnwrapped refuses a bundle that has to be signed and that OPA, which was not told
// so, has not verified: one that an earlier version wrote to disk.
var errUnwrapped = errors.New("the bundle has to be signed and did not come from its server")

// activate is around OPA's activation: it reads the bundles that are wrapped. While
// requests are decided both have a thread of their own, unless there is little to do.
func (m *Manager) activate(o *opabundle.ActivateOpts, activate func() error) error {
	for _, b := range o.Bundles {
		if b.Type() == opabundle.DeltaBundleType { // of a file: of what comes from a server guards see it, and who unpacks it
			return unpack.ErrDelta
		}
	}
	return m.beside(o.Ctx, small(o.Bundles), func() error {
		p := &picking{m: m, o: o}
		read, restore, err := m.arrived(o, p.of)
		defer func() { restore() }()
		if err != nil {
			return err
		}
		if p.again != nil {
			done, err := p.again(activate)
			if err != nil || done {
				return err
			}
			restore()
			if read, restore, err = m.arrived(o, nil); err != nil {
				return err
			}
		}
		return m.compile(o, read, activate)
	})
}

// beside does work on a thread of its own if requests are decided meanwhile, but what is
// small.
func (m *Manager) beside(ctx context.Context, little bool, work func() error) error {
	if little || m.current.Load() == nil {
		return background.Try(work)
	}
	return background.Run(ctx, work)
}

// arrived puts what is in wrapped bundles in their places, until restore: OPA may
// activate them again, and holds them a while. Bundles come with the modules that are
// picked, all if pick is nil; read says of what modules they are.
func (m *Manager) arrived(o *opabundle.ActivateOpts, pick func(name string) unpack.Pick) (read map[string]unpack.Modules, restore func(), err error) {
	read = make(map[string]unpack.Modules)
	var undo []func()
	restore = func() {
		for _, f := range undo {
			f()
		}
		undo = nil
	}
	for name, b := range o.Bundles {
		wrapped := b.Raw
		is, err := m.unwrap(o, name, b, func(is unpack.Modules, parsed map[string]*ast.Module) ([]string, bool) {
			read[name] = is
			if pick == nil {
				return nil, true
			}
			return pick(name)(is, parsed)
		})
		if err != nil {
			return nil, restore, err
		}
		if is {
			undo = append(undo, func() { b.Raw, b.Modules, b.Data = wrapped, nil, nil })
		}
	}
	return read, restore, nil
}

// unwrap puts what is in a wrapped bundle in its place. It is false for one that is not
// wrapped.
func (m *Manager) unwrap(o *opabundle.ActivateOpts, name string, b *opabundle.Bundle, pick unpack.Pick) (bool, error) {
	a := m.arriving[name]
	if a == nil {
		return false, nil
	}
	archive, ok := unwrap(b)
	switch {
	case !ok && a.verify.SignatureRequired():
		return false, errUnwrapped
	case !ok:
		return false, nil
	}
	read, err := unpack.ReadArchive(o.Ctx, archive, a.limit, unpack.Options{
		Name: name, ETag: b.Etag, Verify: a.verify, SizeLimit: a.sizeLimit, Parser: o.ParserOptions, Metrics: o.Metrics, Pick: pick,
	})
	if err != nil {
		return false, err
	}
	*b = *read // OPA reports the revision that it finds there
	o.Compiler.WithPathConflictsCheckRoots(*b.Manifest.Roots)
	return true, nil
}

// wrapKept wraps the bundles that a version before this one has kept on disk.
func (m *Manager) wrapKept() error {
	dir, err := m.opa.GetConfig().GetPersistenceDirectory()
	if err != nil {
		return err
	}
	for name, a := range m.arriving {
		if !a.persist {
			continue
		}
		path := filepath.Join(dir, "bundles", name, "bundle.tar.gz")
		text, err := os.ReadFile(path) //nolint:gosec // OPA's own file
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return err
		case isWrapped(text):
			continue
		}
		if err := atomicfile.Write(path, wrap(text), 0o600); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// isWrapped says that this is what wrap made.
func isWrapped(archive []byte) bool {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return false
	}
	r := tar.NewReader(z)
	if h, err := r.Next(); err != nil || h.Name != wrappedName {
		return false
	}
	begin := make([]byte, len(wrappedMagic))
	_, err = io.ReadFull(r, begin)
	return err == nil && string(begin) == wrappedMagic
}
