// Runs the cells of a client one after another, and prints their results as JSON.

export const url = process.argv[2];
export const model = "pocket";
export const [prompt, change, question] = ["a red car", "make it blue", "what is in the image?"];
export const [hello, andNow] = ["hello", "and now?"];

export async function run(cells) {
  const results = {};
  for (const [name, cell] of Object.entries(cells)) {
    try {
      results[name] = { value: await cell() };
    } catch (error) {
      results[name] = { error: `${error.name}: ${error.message} ${error.responseBody ?? ""}` };
    }
  }
  console.log(JSON.stringify(results));
}
