package roots

import (
	"crypto/sha256"
	"slices"
	"time"
)

const (
	// Parts is in how many parts one authority tells others of its watchers, so that a
	// watcher that says something new costs a part and not the whole.
	Parts = 16
	// maxDetailed is how many reports of a part are told word by word: those that hold
	// the gate up, for people to read. Of the others nothing but where they stand.
	maxDetailed = 8
	// maxToldProxies bounds the proxies of such a report.
	maxToldProxies = 10
	// hashSize is how much of the SHA-256 of a holder stands for it: nobody finds
	// another identity with the same 96 bits.
	hashSize = 12
)

// Told is one part of what an authority tells the others over the same ledger of its
// watchers, about one step of a rotation: 16 bytes for a watcher.
type Told struct {
	// Fine, Behind and Using have the hashes of holders by where they stand, one
	// after the other in their order; a holder with several watchers may be in more
	// than one.
	Fine   []byte `json:"fine,omitempty"`
	Behind []byte `json:"behind,omitempty"`
	Using  []byte `json:"using,omitempty"`
	// Reports are those told word by word.
	Reports []Report `json:"reports,omitempty"`
}

// holderHash stands for a holder.
type holderHash [hashSize]byte

func hashOf(holder string) holderHash {
	sum := sha256.Sum256([]byte(holder))
	return holderHash(sum[:hashSize])
}

func (h holderHash) part() int { return int(h[0]) % Parts }

// Tell makes the parts of what reports mean for the step of the rotation under way.
func Tell(s State, reports []Report) [Parts]Told {
	var out [Parts]Told
	if s.Rotation == nil {
		return out
	}
	var lists [Parts][3][]holderHash
	sorted := slices.Clone(reports)
	slices.SortStableFunc(sorted, func(a, b Report) int { return slices.Compare([]byte(a.Holder), []byte(b.Holder)) })
	for _, rep := range sorted {
		hash, at := hashOf(rep.Holder), s.Rotation.stands(rep)
		told := &out[hash.part()]
		if at != fine && len(told.Reports) < maxDetailed {
			rep.Waiting = rep.Waiting[:min(len(rep.Waiting), maxToldProxies)]
			told.Reports = append(told.Reports, rep)
			continue
		}
		list := &lists[hash.part()][at]
		*list = append(*list, hash)
	}
	for i := range out {
		out[i].Fine, out[i].Behind, out[i].Using = pack(lists[i][fine]), pack(lists[i][behind]), pack(lists[i][using])
	}
	return out
}

// pack puts hashes one after the other, in their order and each once.
func pack(hashes []holderHash) []byte {
	slices.SortFunc(hashes, func(a, b holderHash) int { return slices.Compare(a[:], b[:]) })
	var out []byte
	for _, h := range slices.Compact(hashes) {
		out = append(out, h[:]...)
	}
	return out
}

// Holders finds the owners of certificates by their hashes.
type Holders map[holderHash]string

// HoldersOf are those that matter to a gate.
func HoldersOf(leaves []Leaf) Holders {
	out := make(Holders)
	last := ""
	for _, l := range leaves {
		if l.Owner != "" && l.Owner != last { // an agent's come in a row, mostly
			out[hashOf(l.Owner)] = l.Owner
			last = l.Owner
		}
	}
	return out
}

// Heard gives the reports that another authority told of, about the same step, at a
// time. Those of who has no certificate are left out.
func (r *Rotation) Heard(t Told, known Holders, at time.Time) []Report {
	out := slices.Clone(t.Reports)
	add := func(packed []byte, rep Report) {
		for hash := range slices.Chunk(packed, hashSize) {
			if len(hash) != hashSize {
				return // cut off; whoever is not heard of is waited for
			}
			if holder, ok := known[holderHash(hash)]; ok {
				rep.Holder = holder
				out = append(out, rep)
			}
		}
	}
	add(t.Fine, Report{Acknowledged: r.Sequence, Authorities: []string{r.New}, Since: at})
	add(t.Behind, Report{Since: at})
	add(t.Using, Report{Acknowledged: r.Sequence, Authorities: []string{r.Old}, Since: at})
	return out
}
