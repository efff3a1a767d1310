package listsource

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/writ-mesh/writ/pilot/model"
)

// maxBody is how large a list may be.
const maxBody = 1 << 20

var errTooLarge = fmt.Errorf("it is larger than %d bytes", maxBody)

// errEmpty: an empty body is rather a mistake than a list with nothing on it.
var errEmpty = errors.New("it is empty: a list with nothing on it has a line that begins with #")

// parse reads a body: one entry a line. Empty lines, and those that begin with #, are
// left out. No error has anything of the body in it.
func parse(form model.AccessForm, body []byte) ([]string, error) {
	if len(body) > maxBody {
		return nil, errTooLarge
	}
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	entries, lines := []string{}, 0
	seen := map[string]bool{}
	for line := range strings.SplitSeq(string(body), "\n") {
		lines++
		entry := strings.TrimSpace(line)
		if entry == "" || strings.HasPrefix(entry, "#") || seen[entry] {
			continue
		}
		if fault := model.EntryFault(form, entry); fault != "" {
			return nil, fmt.Errorf("line %d %s", lines, fault)
		}
		if len(entries) == model.MaxEntries(form) {
			return nil, fmt.Errorf("it has more than %d entries", model.MaxEntries(form))
		}
		seen[entry] = true
		entries = append(entries, entry)
	}
	if strings.TrimSpace(string(body)) == "" {
		return nil, errEmpty
	}
	return entries, nil
}
