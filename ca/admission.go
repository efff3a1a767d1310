package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/writ-mesh/writ/ca/handover"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/root"
	"github.com/writ-mesh/writ/ca/roots"
)

// askingPrefix is that of the documents of authorities that have no key of the root yet.
const askingPrefix = "asking/"

// askEvery is how often such a one looks whether it was admitted.
const askEvery = 2 * time.Second

// errNoKey: the root that signs has no key here, and another authority may have it.
var errNoKey = errors.New("its key is not here, and was not handed over to this authority; started again it asks to be admitted")

// keyless tells whether a directory has neither key nor certificate of a first root.
func keyless(dir string) bool {
	for _, name := range []string{root.KeyFile, root.CertFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// ask has this authority asked for by an administrator of another one, and waits a
// moment.
func (r *replicas) ask(ctx context.Context) error {
	r.mu.Lock()
	asked := r.id
	r.mu.Unlock()
	if asked == "" {
		public, _, err := r.pairs.Renew()
		if err != nil {
			return err
		}
		one := handover.Ask(r.host, public, r.k.now())
		data, err := json.Marshal(one)
		if err != nil {
			return err
		}
		if _, err := r.k.store.Commit(ctx, ledger.Change{
			Put:   map[string][]byte{askingPrefix + one.ID: data},
			Entry: ledger.Entry{Kind: ledger.Announced, Time: r.k.now().UTC(), Actor: selfActor, Subject: one.ID, Detail: map[string]string{"host": one.Host, "step": "asks for the key"}},
		}); err != nil {
			return err
		}
		r.mu.Lock()
		r.id = one.ID
		r.mu.Unlock()
		r.k.log.WarnContext(ctx, "this authority waits for the key of the root; run the command at another one over the same ledger", slog.String("command", "writ roots admit "+one.ID))
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(askEvery):
		return nil
	}
}

// admit hands the keys of the roots over to one that asks for them.
func (r *replicas) admit(ctx context.Context, by, id string) error {
	if r == nil {
		return fmt.Errorf("%w: this authority is alone over its ledger", roots.ErrRefused)
	}
	doc, err := r.k.store.Get(ctx, askingPrefix+id)
	if errors.Is(err, ledger.ErrNoDocument) || id == "" {
		return fmt.Errorf("%w: no replica %s asks for the key of the root", roots.ErrRefused, id)
	}
	if err != nil {
		return err
	}
	one, err := handover.ParseAsking(doc.Value)
	if err != nil || one.ID != id {
		return fmt.Errorf("%w: replica %s is not who it says: %w", roots.ErrRefused, id, err)
	}
	t := r.k.a.trusted()
	c := ledger.Change{
		If: map[string]uint64{rootsDocument: t.version, doc.Key: doc.Version}, Put: make(map[string][]byte), Delete: []string{doc.Key},
		Entry: ledger.Entry{Kind: ledger.Announced, Time: r.k.now().UTC(), Actor: by, Subject: one.ID, Authority: t.state.Active, Detail: map[string]string{"host": one.Host, "step": "admitted"}},
	}
	for _, a := range t.state.Authorities {
		if a.Key != "" || r.k.outside.signsFor(a.KeyID) {
			continue
		}
		if err := r.addTo(ctx, &c, a, one); err != nil && (a.KeyID == t.state.Active || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	_, err = r.k.store.Commit(ctx, c)
	return err
}

// addTo adds the key of a root for one more replica to a change.
func (r *replicas) addTo(ctx context.Context, c *ledger.Change, a roots.Authority, one handover.Replica) error {
	cert, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return err
	}
	secret, err := root.Export(r.k.dir, cert)
	if err != nil {
		return err
	}
	parcel, key := handover.Parcel{To: make(map[string][]byte)}, parcelPrefix+a.KeyID
	c.If[key] = 0
	doc, err := r.k.store.Get(ctx, key)
	if err == nil {
		c.If[key] = doc.Version
		parcel, err = handover.ParseParcel(doc.Value)
	}
	if err != nil && !errors.Is(err, ledger.ErrNoDocument) {
		return err
	}
	if err := parcel.Add(r.k.spec.TrustDomain.Name(), a.KeyID, secret, []handover.Replica{one}); err != nil {
		return err
	}
	c.Put[key], err = json.Marshal(parcel)
	return err
}

// all are the authorities that are announced, and those that ask, by id.
func (r *replicas) all(ctx context.Context) (there, asking []handover.Replica, err error) {
	if r == nil {
		return nil, nil, nil
	}
	docs, err := r.k.store.List(ctx, announcedPrefix)
	if err != nil {
		return nil, nil, err
	}
	state := r.k.a.trusted().state
	for _, d := range docs {
		if one, err := r.parse(d.Value, state); err == nil && strings.TrimPrefix(d.Key, announcedPrefix) == one.ID {
			there = append(there, one)
		}
	}
	if docs, err = r.k.store.List(ctx, askingPrefix); err != nil {
		return nil, nil, err
	}
	for _, d := range docs {
		if one, err := handover.ParseAsking(d.Value); err == nil && strings.TrimPrefix(d.Key, askingPrefix) == one.ID {
			asking = append(asking, one)
		}
	}
	return there, asking, nil
}
