package meshdir

import (
	"os"
	"path/filepath"
	"testing"
)

// TestProblemsSayWhatIsInForce: the earlier content, nothing, or the rest of the
// same file.
func TestProblemsSayWhatIsInForce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", quota("a", 1))
	write(t, dir, "part.yaml", quota("b", 1)+"---\n"+quota("bad", -1))
	r := NewReader(Options{Dir: dir})
	want := func(when string, inForce map[string]string) {
		t.Helper()
		_, _, problems := r.Read()
		if len(problems) != len(inForce) {
			t.Errorf("%s: %v", when, problems)
		}
		for _, p := range problems {
			if got, known := inForce[p.File]; !known || p.InForce != got {
				t.Errorf("%s: %s: in force is %q, want %q", when, p, p.InForce, got)
			}
		}
	}
	want("first", map[string]string{"part.yaml": ""})
	write(t, dir, "a.yaml", quota("a", -1))
	write(t, dir, "new.yaml", quota("c", -1))
	want("an edit and a new file", map[string]string{"part.yaml": "", "a.yaml": InForceEarlier, "new.yaml": InForceNothing})
	if err := os.Remove(filepath.Join(dir, "new.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "a.yaml", quota("a", 2))
	want("mended", map[string]string{"part.yaml": ""})
}
