// Package witness remembers what the authority's log was: the newest checkpoint that
// somebody saw, who asks for a proof each time that the log of now goes on from there.
// So an authority whose ledger was altered, shortened or exchanged, by whomever, cannot
// show it to those who saw another one.
//
// A ledger that was restored from a backup lacks what was seen meanwhile, and says so
// itself in an entry. That is believed if the entry is in the log and younger than what
// is remembered: it is no contradiction, and it is told.
package witness

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/writ-mesh/writ/internal/atomicfile"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	// maxFile bounds what is remembered, in bytes.
	maxFile = 1 << 20
	// tellRestore is how long a restore that was met is told of.
	tellRestore = 7 * 24 * time.Hour
	// skew is by how much the clocks of authority and witness may differ.
	skew = 10 * time.Minute
	// restoredKind is that of the entry that says that a ledger was restored.
	restoredKind = "restored"
)

// Seen is what is remembered. The zero value is of somebody who saw nothing yet.
type Seen struct {
	// Verifier is the public key of who signed it: each of several authorities over one
	// ledger has its own.
	Verifier string `json:"verifier"`
	// Checkpoint is the signed note, Size and At are its log's and when it came.
	Checkpoint string    `json:"checkpoint"`
	Size       uint64    `json:"size"`
	At         time.Time `json:"at"`
	// Restored is the last restore that was met, nil if there was none.
	Restored *Restored `json:"restored,omitempty"`
	// Contradiction is the first that was met, nil if there was none. It stays until
	// the file is removed.
	Contradiction *Contradiction `json:"contradiction,omitempty"`
}

// Restored is what a ledger lost.
type Restored struct {
	// Time is when it was restored, Index that of the entry that says so.
	Time  time.Time `json:"time"`
	Index uint64    `json:"index"`
	// Seen is how many entries the ledger had before.
	Seen uint64 `json:"seen"`
}

// Contradiction is an answer that cannot be true together with what was seen.
type Contradiction struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	// Checkpoint and Verifier are those of the answer. If its signature is good, they
	// prove together with what is remembered that the authority showed two logs.
	Checkpoint string `json:"checkpoint"`
	Verifier   string `json:"verifier"`
}

// String is what is known, for people. A contradiction begins with
// "CONTRADICTION:".
func (s Seen) String() string {
	switch {
	case s.Contradiction != nil:
		return fmt.Sprintf("CONTRADICTION: %s (at %s)", s.Contradiction.Reason, s.Contradiction.At.UTC().Format(time.RFC3339))
	case s.Checkpoint == "":
		return "no checkpoint yet"
	case s.Restored != nil:
		return fmt.Sprintf("%d entries are signed for; restored from a backup at %s, entries %d to %d of before are lost", s.Size, s.Restored.Time.UTC().Format(time.RFC3339), s.Restored.Index, s.Restored.Seen-1)
	}
	return fmt.Sprintf("%d entries are signed for", s.Size)
}

// Load reads what Save wrote. No file is no memory, and no error.
func Load(path string) (Seen, error) {
	var s Seen
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if info.Size() > maxFile {
		return s, fmt.Errorf("%s has %d bytes, more than %d", path, info.Size(), maxFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return Seen{}, fmt.Errorf("%s does not hold what was seen of the log: %w", path, err)
	}
	if _, err := s.checkpoint(); err != nil {
		return Seen{}, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// Save writes s durably.
func (s Seen) Save(path string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

func (s Seen) checkpoint() (Checkpoint, error) {
	if s.Checkpoint == "" {
		return Checkpoint{}, nil
	}
	c, err := Open([]byte(s.Checkpoint), s.Verifier)
	if err == nil && c.Size != s.Size {
		err = fmt.Errorf("the checkpoint is of %d entries, not %d", c.Size, s.Size)
	}
	return c, err
}

// Take gives what is to be remembered after an answer to the question for s.Size. The
// error says what contradicts s; then what is remembered of the log stays, and the
// answer goes with it.
func (s Seen) Take(answer *capb.ProveContinuationResponse, now time.Time) (Seen, error) {
	next, err := s.after(answer, now)
	if err == nil {
		return next, nil
	}
	if s.Contradiction == nil {
		s.Contradiction = &Contradiction{At: now.UTC(), Reason: err.Error(), Checkpoint: answer.GetCheckpoint(), Verifier: answer.GetVerifier()}
	}
	return s, err
}

func (s Seen) after(answer *capb.ProveContinuationResponse, now time.Time) (Seen, error) {
	earlier, err := s.checkpoint()
	if err != nil {
		return s, err
	}
	next := s
	newer, err := Open([]byte(answer.GetCheckpoint()), answer.GetVerifier())
	if err != nil {
		return s, err
	}
	if s.Checkpoint != "" && newer.Log != earlier.Log {
		return s, fmt.Errorf("it is the log of %s, and was that of %s", newer.Log, earlier.Log)
	}
	next.Verifier = answer.GetVerifier()
	next.Checkpoint, next.Size, next.At = answer.GetCheckpoint(), newer.Size, now.UTC()
	if s.Restored != nil && now.Sub(s.Restored.Time) > tellRestore {
		next.Restored = nil
	}
	if newer.goesOnFrom(earlier, answer.GetConsistency()) == nil || s.Checkpoint == "" {
		return next, nil
	}
	if next.Restored = s.restored(newer, answer); next.Restored != nil {
		return next, nil
	}
	by := ""
	if answer.GetVerifier() != s.Verifier {
		by = ", and is signed by another key"
	}
	if newer.Size < earlier.Size {
		return s, fmt.Errorf("the log has %d entries, and had %d at %s: it was rolled back, and says nothing of a restore%s", newer.Size, earlier.Size, s.At.Format(time.RFC3339), by)
	}
	return s, fmt.Errorf("the log of now, of %d entries, does not go on from the %d entries seen at %s: it is another one, or was altered%s", newer.Size, earlier.Size, s.At.Format(time.RFC3339), by)
}

// restored reads the entry by which a log says that it was restored since s, nil if
// there is none to believe.
func (s Seen) restored(newer Checkpoint, answer *capb.ProveContinuationResponse) *Restored {
	e := answer.GetRestored()
	if e == nil || e.GetIndex() >= s.Size || newer.includes(e.GetIndex(), e.GetEntry(), answer.GetInclusion()) != nil {
		return nil
	}
	var entry struct {
		Kind string    `json:"kind"`
		Time time.Time `json:"time"`
	}
	if json.Unmarshal(e.GetEntry(), &entry) != nil || entry.Kind != restoredKind || entry.Time.Before(s.At.Add(-skew)) {
		return nil
	}
	return &Restored{Time: entry.Time, Index: e.GetIndex(), Seen: s.Size}
}
