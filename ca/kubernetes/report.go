package kubernetes

import (
	"encoding/hex"
	"slices"
	"time"
)

// Report is where the Secrets stand in a rotation of the root.
type Report struct {
	// Current says that pods have the roots of now in all of them.
	Current bool
	// Authorities are the key ids of the authorities whose certificates pods may
	// have; an empty one stands for one that is not known.
	Authorities []string
	// Waiting are the Secrets that are waited for, NAMESPACE/NAME.
	Waiting []string
}

// Report says where the Secrets stand; nil if there are none to be kept.
func (c *Cluster) Report() *Report {
	if c.writer == nil {
		return nil
	}
	if !c.listed(c.accounts) || !c.listed(c.secrets) {
		return &Report{Authorities: []string{""}, Waiting: []string{"the cluster's API"}}
	}
	return c.writer.report(c.writer.issuer.Trust().Sequence, c.now())
}

// report looks at the Secrets that are out there. One that was never written holds up
// nothing, and one whose certificate has expired is nobody's any more.
func (w *writer) report(sequence uint64, now time.Time) *Report {
	accounts, seen := w.c.known(), w.seen()
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &Report{Current: true}
	for a := range accounts {
		k := w.kept[a]
		switch {
		case k == nil || k.leaf == nil:
			// It is there, and was not looked at yet.
			if _, is := seen[name{a.namespace, w.c.cfg.SecretPrefix + a.name}]; is && (k == nil || !k.foreign) {
				r.wait(name{a.namespace, w.c.cfg.SecretPrefix + a.name}, "")
			}
			continue
		case !now.Before(k.leaf.NotAfter):
			continue
		}
		r.Authorities = append(r.Authorities, hex.EncodeToString(k.leaf.AuthorityKeyId))
		for authority, until := range k.former {
			if now.Before(until) {
				r.Authorities = append(r.Authorities, authority)
			} else {
				delete(k.former, authority)
			}
		}
		if k.sequence != sequence || now.Before(k.since.Add(w.c.cfg.SecretDelay.D())) {
			r.wait(k.name)
		}
	}
	slices.Sort(r.Authorities)
	r.Authorities = slices.Compact(r.Authorities)
	slices.Sort(r.Waiting)
	return r
}

// wait notes a Secret that is not as it has to be.
func (r *Report) wait(n name, authorities ...string) {
	r.Current = false
	r.Waiting = append(r.Waiting, n.String())
	r.Authorities = append(r.Authorities, authorities...)
}
