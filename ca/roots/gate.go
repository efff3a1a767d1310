package roots

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Leaf is a certificate of the ledger that has not expired.
type Leaf struct {
	// Identity is its SPIFFE ID.
	Identity string
	// Owner is who has to replace it: the node agent or service that asked for it,
	// which for its own is itself. Empty for one that an administrator or another
	// client got, which nobody speaks for.
	Owner string
	// Issuer is the key id of the authority that signed it; empty if the ledger does
	// not know, which is as bad as the old one.
	Issuer   string
	NotAfter time.Time
}

// Report is where a watcher of the bundle stands. A holder has one for each of
// its processes.
type Report struct {
	// Holder is the watcher's SPIFFE ID.
	Holder string
	// Acknowledged is the sequence of the bundle that it, and all whom it serves,
	// use.
	Acknowledged uint64
	// Authorities are the key ids of the authorities whose certificates it uses; an
	// empty one stands for one that it does not know.
	Authorities []string
	// Waiting names the proxies that it waits for.
	Waiting []string
	// Since is when the report was made.
	Since time.Time
}

// Facts are what a gate is judged by.
type Facts struct {
	// Leaves are those that have not expired.
	Leaves []Leaf
	// Reports are those of the watchers that are connected.
	Reports []Report
	// Replicas are the other authorities over the same ledger that live.
	Replicas []Replica
}

// Replica is another authority over the same ledger.
type Replica struct {
	// Name is how people are told of it.
	Name string
	// Taken: it has put the state of now into force.
	Taken bool
	// Lacks is why it could not sign with the new root's key; empty if it could.
	Lacks string
	// Since is when it said so, or when it was expected first.
	Since time.Time
}

// Hold is a reason why a gate is shut.
type Hold struct {
	// Holder is a SPIFFE ID.
	Holder string `json:"holder"`
	// Reason is what it is waited for, a phrase such as "is not connected".
	Reason string `json:"reason"`
	// Proxies are those that the holder waits for itself.
	Proxies []string `json:"proxies,omitempty"`
	// Since is when the holder said where it stands, or when the step began.
	Since time.Time `json:"since"`
	// Until is when the last certificate expires that matters, and with it the
	// wait.
	Until time.Time `json:"until"`
}

// Gate says who holds up the next step of the rotation under way: nobody if it
// is empty. The holds are in the order of the holders.
func Gate(s State, f Facts, now time.Time) []Hold {
	if s.Rotation == nil {
		return nil
	}
	byHolder := make(map[string][]Report)
	for _, r := range f.Reports {
		byHolder[r.Holder] = append(byHolder[r.Holder], r)
	}
	var holds []Hold
	for who, until := range s.Rotation.concerned(f.Leaves, now) {
		if h, shut := s.Rotation.hold(who, byHolder[who.owner]); shut {
			h.Until = until
			holds = append(holds, h)
		}
	}
	for _, r := range f.Replicas {
		if h, shut := s.Rotation.holdReplica(r); shut {
			holds = append(holds, h)
		}
	}
	slices.SortFunc(holds, func(a, b Hold) int { return cmp.Or(cmp.Compare(a.Holder, b.Holder), cmp.Compare(a.Reason, b.Reason)) })
	return holds
}

// party is who is waited for: an owner of certificates, or a certificate's
// identity if nobody speaks for it.
type party struct{ owner, identity string }

// concerned gives everybody who matters to the next step, and until when.
func (r *Rotation) concerned(leaves []Leaf, now time.Time) map[party]time.Time {
	alive := make(map[string]bool) // owners with a certificate of their own
	for _, l := range leaves {
		if l.Owner == l.Identity && l.NotAfter.After(now) {
			alive[l.Owner] = true
		}
	}
	out := make(map[party]time.Time)
	for _, l := range leaves {
		who := party{owner: l.Owner}
		switch {
		case !l.NotAfter.After(now):
			continue
		case r.Step == Distributing && l.Owner != l.Identity:
			continue // the bundle comes to a workload through its owner
		case r.Step == Draining && l.Issuer != r.Old && l.Issuer != "":
			continue
		case !alive[l.Owner]:
			who = party{identity: l.Identity} // nobody is left who could say anything
		}
		if l.NotAfter.After(out[who]) {
			out[who] = l.NotAfter
		}
	}
	return out
}

// hold says whether a party holds the step up, by what its watchers reported.
func (r *Rotation) hold(who party, reports []Report) (Hold, bool) {
	if who.owner == "" {
		return Hold{Holder: who.identity, Reason: "has a certificate of the old root and nobody who renews it", Since: r.Since}, true
	}
	if len(reports) == 0 {
		return Hold{Holder: who.owner, Reason: "is not connected", Since: r.Since}, true
	}
	for _, rep := range reports {
		h := Hold{Holder: who.owner, Proxies: rep.Waiting, Since: rep.Since}
		switch r.stands(rep) {
		case behind:
			h.Reason = fmt.Sprintf("has not acknowledged bundle %d", r.Sequence)
			return h, true
		case using:
			h.Reason = "uses certificates of the old root"
			return h, true
		case fine:
		}
	}
	return Hold{}, false
}

// standing is what a report means for the step of a rotation.
type standing int

const (
	fine standing = iota
	// behind: it has not acknowledged the bundle of the step.
	behind
	// using: certificates of the old root are in use.
	using
)

func (r *Rotation) stands(rep Report) standing {
	switch {
	case rep.Acknowledged < r.Sequence:
		return behind
	case r.Step == Draining && (slices.Contains(rep.Authorities, r.Old) || slices.Contains(rep.Authorities, "")):
		return using
	}
	return fine
}

// holdReplica says whether another authority holds the step up: before the new root
// signs each that lives has to be able to, and what its watchers say counts from when it
// has the state.
func (r *Rotation) holdReplica(rep Replica) (Hold, bool) {
	h := Hold{Holder: rep.Name, Since: rep.Since}
	switch {
	case !rep.Taken:
		h.Reason = "has not taken over where the rotation stands"
	case r.Step == Distributing && rep.Lacks != "":
		h.Reason = "cannot sign with the new root: " + rep.Lacks
	default:
		return Hold{}, false
	}
	return h, true
}

// May says whether a rotation with that gate goes on by itself now.
func (r *Rotation) May(gate []Hold) bool {
	open := len(gate) == 0 || r.Force || r.Compromised
	return open && (!r.Manual || r.Proceed)
}
