package roots

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Step is how far a rotation has come.
type Step string

// The steps of a rotation. A rotation that has ended is Done or Aborted.
const (
	// Distributing: both roots are trusted, the old one signs.
	Distributing Step = "distributing"
	// Draining: both roots are trusted, the new one signs.
	Draining Step = "draining"
	// Done: the old root is dropped.
	Done Step = "done"
	// Aborted: the new root was taken out again and never signed.
	Aborted Step = "aborted"
)

// Authority is a root that is trusted.
type Authority struct {
	// KeyID is the subject key identifier in lower-case hexadecimal.
	KeyID string `json:"key_id"`
	// Certificate is in DER.
	Certificate []byte `json:"certificate"`
	// Key says where its key is, if it is not in the state directory: a URI without
	// secrets.
	Key string `json:"key,omitempty"`
	// Issuers are the key ids of the authorities below it that signed in its name, the
	// newest last; none if it signs itself.
	Issuers []string `json:"issuers,omitempty"`
}

// State is all that is remembered. The zero State is of an authority without a
// root.
type State struct {
	// Sequence is that of the roots in the bundle; it rises with each change.
	Sequence uint64 `json:"sequence"`
	// Active is the key id of the authority that signs.
	Active string `json:"active"`
	// Authorities are those in the bundle, the oldest first.
	Authorities []Authority `json:"authorities"`
	// Extra are roots in DER that are trusted besides, though nothing is signed in
	// their name here; of plugged-in authorities only.
	Extra [][]byte `json:"extra,omitempty"`
	// Rotation is the one under way, nil if there is none.
	Rotation *Rotation `json:"rotation,omitempty"`
	// Last is the rotation that ended last.
	Last *Rotation `json:"last,omitempty"`
}

// Rotation is one replacement of a root.
type Rotation struct {
	Step Step `json:"step"`
	// Old and New are key ids.
	Old string `json:"old"`
	New string `json:"new"`
	// Sequence is that of the first bundle of this step.
	Sequence  uint64    `json:"sequence"`
	StartedAt time.Time `json:"started_at"`
	StartedBy string    `json:"started_by"`
	// Since is when the step began.
	Since time.Time `json:"since"`
	How
	// Proceed lets a manual rotation through the next open gate.
	Proceed bool `json:"proceed,omitempty"`
	// Skipped are those that were not waited for.
	Skipped []Hold `json:"skipped,omitempty"`
}

// The state is a small document, so that of a forced rotation it has the first of
// those that were not waited for.
const (
	maxSkipped        = 100
	maxSkippedProxies = 10
)

// How is what an operator wants of a rotation.
type How struct {
	// Force: wait for nobody.
	Force bool `json:"force,omitempty"`
	// Compromised: as Force, and the old root is dropped in the step in which the
	// new one begins to sign.
	Compromised bool `json:"compromised,omitempty"`
	// Manual: stop at each open gate.
	Manual bool `json:"manual,omitempty"`
}

// ErrRefused is wrapped by the errors of changes that the state does not allow.
var ErrRefused = errors.New("the roots cannot be changed so")

// errNone: there is no rotation under way.
var errNone = refused("no rotation is under way")

func refused(format string, args ...any) error {
	return refusal(fmt.Sprintf(format, args...))
}

// refusal is an ErrRefused in words of its own.
type refusal string

// Error implements error.
func (r refusal) Error() string { return string(r) }

// Is makes it an ErrRefused.
func (r refusal) Is(target error) bool { return target == ErrRefused }

// First is the state of an authority with its first root.
func First(a Authority) State {
	return State{Sequence: 1, Active: a.KeyID, Authorities: []Authority{a}}
}

// Check says what is wrong with a state that was read.
func (s State) Check() error {
	if s.Sequence == 0 {
		return errors.New("the sequence is 0")
	}
	ids := make([]string, 0, len(s.Authorities))
	for _, a := range s.Authorities {
		if a.KeyID == "" || slices.Contains(ids, a.KeyID) {
			return fmt.Errorf("the key id %q is empty or there twice", a.KeyID)
		}
		ids = append(ids, a.KeyID)
	}
	if !slices.Contains(ids, s.Active) {
		return fmt.Errorf("the active authority %q is not among %v", s.Active, ids)
	}
	want := 1
	if r := s.Rotation; r != nil {
		want = 2
		signs := map[Step]string{Distributing: r.Old, Draining: r.New}[r.Step]
		if signs != s.Active || r.Old == r.New || !slices.Contains(ids, r.Old) || !slices.Contains(ids, r.New) {
			return fmt.Errorf("a rotation from %q to %q that is %s does not fit the authorities %v, of which %q signs", r.Old, r.New, r.Step, ids, s.Active)
		}
	}
	if len(ids) != want {
		return fmt.Errorf("there are %d authorities, want %d", len(ids), want)
	}
	return nil
}

// Authority gives the one with that key id.
func (s State) Authority(keyID string) (Authority, bool) {
	i := slices.IndexFunc(s.Authorities, func(a Authority) bool { return a.KeyID == keyID })
	if i < 0 {
		return Authority{}, false
	}
	return s.Authorities[i], true
}

// Begin puts a new root beside the one that there is.
func (s State) Begin(a Authority, by string, how How, now time.Time) (State, error) {
	if r := s.Rotation; r != nil {
		return s, refused("a rotation is under way since %s", r.StartedAt.UTC().Format(time.RFC3339))
	}
	if _, there := s.Authority(a.KeyID); there || a.KeyID == "" {
		return s, fmt.Errorf("the new root has the key id %q, which is no new one", a.KeyID)
	}
	s.Sequence++
	s.Authorities = append(slices.Clone(s.Authorities), a)
	s.Rotation = &Rotation{
		Step: Distributing, Old: s.Active, New: a.KeyID, Sequence: s.Sequence,
		StartedAt: now.UTC(), StartedBy: by, Since: now.UTC(), How: how,
	}
	return s, nil
}

// Continue changes how the rotation under way goes on: what is wanted once stays
// wanted, and a manual rotation may go through its next open gate.
func (s State) Continue(how How) (State, error) {
	if s.Rotation == nil {
		return s, errNone
	}
	r := *s.Rotation
	r.Force = r.Force || how.Force
	r.Compromised = r.Compromised || how.Compromised
	r.Manual, r.Proceed = how.Manual, true
	s.Rotation = &r
	return s, nil
}

// Abort takes the new root out again. Once that signs, there is no way back: its
// certificates are in use.
func (s State) Abort(now time.Time) (State, error) {
	r := s.Rotation
	switch {
	case r == nil:
		return s, errNone
	case r.Step != Distributing:
		return s, refused("the new root signs already; let the rotation end, and rotate again if it must go")
	}
	return s.without(r.New).end(Aborted, now), nil
}

// Advance goes one step on, past whoever is in the gate. The caller has found it
// open, or wants it forced.
func (s State) Advance(gate []Hold, now time.Time) (State, error) {
	if s.Rotation == nil {
		return s, errNone
	}
	r := *s.Rotation
	r.Skipped = append(slices.Clone(r.Skipped), gate...)
	r.Skipped = r.Skipped[:min(len(r.Skipped), maxSkipped)]
	for i := range r.Skipped {
		r.Skipped[i].Proxies = r.Skipped[i].Proxies[:min(len(r.Skipped[i].Proxies), maxSkippedProxies)]
	}
	r.Proceed = false
	s.Rotation = &r
	if r.Step == Draining {
		return s.without(r.Old).end(Done, now), nil
	}
	s.Sequence++
	s.Active = r.New
	r.Step, r.Sequence, r.Since = Draining, s.Sequence, now.UTC()
	if r.Compromised {
		return s.without(r.Old).end(Done, now), nil
	}
	return s, nil
}

func (s State) without(keyID string) State {
	s.Sequence++
	s.Authorities = slices.DeleteFunc(slices.Clone(s.Authorities), func(a Authority) bool { return a.KeyID == keyID })
	return s
}

func (s State) end(step Step, now time.Time) State {
	r := *s.Rotation
	r.Step, r.Sequence, r.Since = step, s.Sequence, now.UTC()
	s.Rotation, s.Last = nil, &r
	return s
}
