// Package revision numbers the configurations that pilot distributes and decides
// what becomes of each: pending until every connected client has acknowledged it,
// then live; rejected when a client refuses it, in which case the last live one is
// served again; superseded when a newer one comes before it was live.
//
// Tracker is pure: events and times in, decisions out, no I/O. Load and Save keep
// what has to survive a restart in a small file. The package does not know what a
// configuration is: it sees a hash of its content.
package revision

import (
	"slices"
	"time"
)

// maxRevisions is how many revisions are remembered.
const maxRevisions = 20

// State is what has become of a revision.
type State int

// The states.
const (
	Pending State = iota + 1
	Live
	Rejected
	Superseded
)

// String gives the state's name in lower case.
func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Live:
		return "live"
	case Rejected:
		return "rejected"
	case Superseded:
		return "superseded"
	}
	return "unknown"
}

// Rejection is a client's refusal.
type Rejection struct {
	Client  string `json:"client"`
	TypeURL string `json:"typeUrl"`
	// Detail is in the client's own words.
	Detail string `json:"detail"`
	// Objects are at fault, as "<kind> <namespace>/<name> (<file>:<line>)".
	Objects []string `json:"objects"`
}

// Revision is one numbered configuration.
type Revision struct {
	Number  uint64
	Hash    string
	State   State
	Created time.Time
	// Written is when the files were written, from which TimeToLive counts.
	Written time.Time
	// TimeToLive is set once State is Live.
	TimeToLive time.Duration
	// Rejection is set for Rejected, and for a Live revision that a client refused
	// which connected after it had gone live.
	Rejection *Rejection
}

// Saved is what survives a restart.
type Saved struct {
	// Number and Hash are those of the content proposed last; 0 if there was none.
	Number uint64 `json:"number"`
	Hash   string `json:"hash"`
	// Highest is the highest number ever given, if that is another.
	Highest uint64 `json:"highest,omitempty"`
}

// Tracker is the state machine. Its methods are not safe for concurrent use.
type Tracker struct {
	saved     Saved
	revisions []*Revision // oldest first, at most maxRevisions
	serving   *Revision
	good      *Revision // the newest that was live; nil if none was
	// clients maps the streams of connected clients to the revision that each has entirely.
	clients map[any]uint64
	// alone says that no client is expected, so that a revision is live without any.
	alone bool
}

// New returns a tracker that goes on from what was saved.
func New(saved Saved) *Tracker { return &Tracker{saved: saved, clients: map[any]uint64{}} }

// Propose takes a configuration from the files. It returns the revision and
// whether it is to be published. The content that was proposed last is not
// proposed again: not if it is being served, and not if it was rejected.
func (t *Tracker) Propose(hash string, written, now time.Time) (Revision, bool) {
	if n := len(t.revisions); n > 0 && hash == t.saved.Hash {
		for _, r := range t.revisions {
			if r.Number == t.saved.Number {
				return *r, false
			}
		}
		return *t.revisions[n-1], false
	}
	if t.serving != nil && t.serving.Hash == hash && t.serving.State == Live {
		// back to what is being served
		t.saved = Saved{Number: t.serving.Number, Hash: hash, Highest: max(t.saved.Highest, t.saved.Number)}
		return *t.serving, false
	}
	if hash != t.saved.Hash || t.saved.Number == 0 {
		t.saved = Saved{Number: max(t.saved.Number, t.saved.Highest) + 1, Hash: hash}
	}
	r := &Revision{Number: t.saved.Number, Hash: hash, State: Pending, Created: now, Written: written}
	if s := t.serving; s != nil && s.State == Pending {
		s.State = Superseded
	}
	t.revisions = append(t.revisions, r)
	if len(t.revisions) > maxRevisions {
		t.revisions = slices.Delete(t.revisions, 0, len(t.revisions)-maxRevisions)
	}
	t.serving = r
	return *r, true
}

// Expect says whether the mesh has clients at all.
func (t *Tracker) Expect(clients bool, now time.Time) {
	t.alone = !clients
	t.settle(now)
}

// Connected takes a client in. It has acknowledged nothing yet.
func (t *Tracker) Connected(client any) { t.clients[client] = 0 }

// Disconnected lets a client go; those that remain may complete the revision.
func (t *Tracker) Disconnected(client any, now time.Time) {
	delete(t.clients, client)
	t.settle(now)
}

// Acked notes that a client has all of a revision. It returns true if the
// revision went live by it.
func (t *Tracker) Acked(client any, number uint64, now time.Time) bool {
	if _, ok := t.clients[client]; !ok {
		return false
	}
	t.clients[client] = number
	return t.settle(now)
}

// settle makes the revision being served live if every client has it.
func (t *Tracker) settle(now time.Time) bool {
	r := t.serving
	if r == nil || r.State != Pending || len(t.clients) == 0 && !t.alone {
		return false
	}
	for _, acked := range t.clients {
		if acked != r.Number {
			return false
		}
	}
	r.State, r.TimeToLive = Live, now.Sub(r.Written)
	t.good = r
	return true
}

// Refused notes that a client refused a part of a revision. If that revision is
// being served and is not live yet, it is rejected, and Refused returns the
// revision to serve again, with ok true, if there is a good one. A live revision
// stays: the client that refuses it came later than its acceptance.
func (t *Tracker) Refused(number uint64, why Rejection) (back Revision, ok bool) {
	i := slices.IndexFunc(t.revisions, func(r *Revision) bool { return r.Number == number })
	if i < 0 {
		return Revision{}, false
	}
	r := t.revisions[i]
	if r.Rejection == nil {
		r.Rejection = &why
	}
	switch r.State {
	case Superseded:
		r.State = Rejected
	case Pending:
		r.State = Rejected
		if r == t.serving && t.good != nil {
			t.serving = t.good
			return *t.good, true
		}
	}
	return Revision{}, false
}

// Serving is the revision that clients are being given; false before the first.
func (t *Tracker) Serving() (Revision, bool) {
	if t.serving == nil {
		return Revision{}, false
	}
	return *t.serving, true
}

// Revisions lists the newest revisions, newest first, at most 20.
func (t *Tracker) Revisions() []Revision {
	list := make([]Revision, 0, len(t.revisions))
	for _, r := range slices.Backward(t.revisions) {
		list = append(list, *r)
	}
	return list
}

// Saved is what has to survive a restart.
func (t *Tracker) Saved() Saved { return t.saved }
