package docs_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryAttemptIsATest: each attempt of security/impersonation.md and attacks.md, and
// each bad input of security/badinput.md, says what becomes of it, and names tests that
// exist.
func TestEveryAttemptIsATest(t *testing.T) {
	for page, least := range map[string]int{"security/impersonation.md": 20, "security/badinput.md": 12, "security/attacks.md": 60} {
		t.Run(page, func(t *testing.T) { checkAttempts(t, page, least) })
	}
}

func checkAttempts(t *testing.T, page string, least int) {
	t.Helper()
	one := regexp.MustCompile("^`([a-z][a-z0-9/-]*)\\.((?:Test|Fuzz)[A-Z]\\w*)(?:/([a-z0-9.-]+))?`$")
	funcs := map[string]map[string]bool{}
	attempts := 0
	for line := range strings.Lines(read(t, page)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| attempt |") {
			continue
		}
		if len(cells) != 3 || len(strings.Fields(cells[1])) < 3 {
			t.Errorf("not a row: %s", line)
			continue
		}
		attempts++
		for name := range strings.SplitSeq(strings.TrimSuffix(cells[2], " |"), ", ") {
			m := one.FindStringSubmatch(name)
			if m == nil {
				t.Errorf("%q is no `folder.TestName`: %s", name, line)
				continue
			}
			if funcs[m[1]] == nil {
				funcs[m[1]] = testsOf(t, filepath.Join("..", m[1]))
			}
			if !funcs[m[1]][m[2]] {
				t.Errorf("there is no test %s in %s", m[2], m[1])
			}
			if m[3] != "" && !hasCase(t, filepath.Join("..", m[1]), m[3]) {
				t.Errorf("there is no case %s in %s", m[3], m[1])
			}
		}
	}
	if attempts < least {
		t.Errorf("only %d attempts", attempts)
	}
}

// hasCase looks for a subtest in the tables of a folder's tests.
func hasCase(t *testing.T, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(read(t, f), `name: "`+name+`"`) {
			return true
		}
	}
	return false
}
